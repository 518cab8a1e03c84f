"""Finds and loads the parameters of trained networks.

The stage's newest whole checkpoint in the work folder takes precedence over `config.weights.STAGE`,
which names shipped weights ("shipped:NAME"), or a file that `--mode=export
--config.export.format=cdsde` wrote, here or on a model hub (hub.py). Nothing is initialised at
random, and nothing else is downloaded.

An exported file is float16 safetensors, with its card (architecture, training, origin) beside it as
FILE.json; the shipped files are in `cdsde/assets/checkpoints/`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.networks import build
from cdsde.runtime.trees import digest, not_finite
from cdsde.weights import checkpoint, enlarged, exported, hub, knowledge
from cdsde.weights.formats import registry, remarks

SHIPPED = "shipped:"


def shipped_folder(kind: str = "checkpoints") -> Path:
    """Folder of the shipped "checkpoints" or latent diffusion "models"."""
    return Path(str(resources.files("cdsde") / "assets" / kind))


def load(config: ConfigDict, workdir, stage: str, to_train: bool = False):
    """Parameters of a stage's network (host arrays, float32) and a line about their origin.

    Args:
      config: the task.
      workdir: its work folder.
      stage: the network.
      to_train: whether training goes on from them. The network may then know other domains than
        the config's, and see smaller images (`enlarged.py`).

    Raises:
      ValueError: there are none, or they do not fit the config, or they know other domains; the
        message names a remedy.
    """
    step = checkpoint.newest_whole(workdir, stage)
    if step is None:
        source = origin(config, workdir, stage)
        params, record = _load_named(config, stage, source, to_train)
    else:
        source = f"{checkpoint.stage_folder(workdir, stage)}/{step}"
        record = checkpoint.saved_config(workdir, stage, step)
        _check_fit(knowledge.architecture_of_record(record, config, stage), config, stage, source)
        params = checkpoint.open_ema(workdir, stage, shapes(config, stage), step)
    if not to_train:
        knowledge.check_domains(record, config, stage, source)
    params = jax.tree.map(np.asarray, params)
    if damaged := not_finite(params):
        raise ValueError(
            f"{source} is damaged: {len(damaged)} parameters hold NaN or infinite values (first: "
            f"{damaged[0]}); take another checkpoint or file of the {stage} network"
        )
    source = f"{source} (sha256 {digest(params)[:12]})"
    logging.info("%s: %s", stage, source)
    return params, source


def origin(config: ConfigDict, workdir, stage: str) -> str:
    """The source that `load` reads: path of the newest checkpoint, or `config.weights.STAGE`.

    Raises:
      ValueError: there is none; the message names a remedy.
    """
    step = checkpoint.latest_step(workdir, stage)
    if step is not None:
        return f"{checkpoint.stage_folder(workdir, stage)}/{step}"
    if stage in config_lib.FEATURES:
        raise ValueError(
            f"{config.method} needs {stage}, and there is none in "
            f"{checkpoint.stage_folder(workdir, stage)}: bring it in with --mode=import "
            f"--config.weights.{stage}=PATH"
        )
    if config.weights[stage] is None:
        raise ValueError(
            f"{config.method} needs a trained {stage} network, and there is none in "
            f"{checkpoint.stage_folder(workdir, stage)}: train it with --mode=train "
            f"--config.train.stage={stage}, or name weights with --config.weights.{stage}=..."
        )
    return config.weights[stage]


def check(config: ConfigDict, workdir, stage: str) -> None:
    """Checks that a stage has weights that fit the config, without reading them.

    Raises:
      ValueError: it has none, they are of another network, or they know other domains.
    """
    source = origin(config, workdir, stage)
    step = checkpoint.newest_whole(workdir, stage)
    if step is not None:
        record = checkpoint.saved_config(workdir, stage, step)
        _check_fit(knowledge.architecture_of_record(record, config, stage), config, stage, source)
    else:
        path = file_of(stage, source)
        record = exported.read_card(path) if path.with_suffix(".json").is_file() else {}
    knowledge.check_domains(record, config, stage, source)


def shapes(config: ConfigDict, stage: str):
    """The stage's parameter tree as ShapeDtypeStructs on one local device."""
    tree = jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), tree)


def file_of(stage: str, name: str) -> Path:
    """The file that `config.weights.STAGE` names.

    Raises:
      ValueError: there is none.
    """
    if not name.startswith(SHIPPED):
        if not (path := hub.local(name)).exists():
            raise ValueError(f"config.weights.{stage}={name} does not exist; {hub.advice(name)}")
        return path
    path = shipped_folder() / f"{name.removeprefix(SHIPPED)}.safetensors"
    if not path.exists():
        raise ValueError(
            f"config.weights.{stage}={name}: the package has no such weights; there are "
            f"{', '.join(shipped_names()) or 'none'}"
        )
    return path


def _load_named(config: ConfigDict, stage: str, name: str, to_train: bool) -> tuple[dict, dict]:
    """The parameters in a file, and the card beside it."""
    path = file_of(stage, name)
    if config_lib.network_group(stage) == "score" and registry.format_of(name):
        if config.score.arch == "published":
            return remarks.read(config, name).params, {}
        if registry.format_of(name, importing=True):
            raise ValueError(
                f"config.weights.{stage}={name} is a published network, which cdsde samples from "
                "and does not train; leave it out"
            )
    card = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not card.exists():
        raise ValueError(
            f"config.weights.{stage}={name} has no card {card.name} beside it, so it is not a file "
            f"of cdsde; {_advice(stage, path)}"
        )
    about = exported.read_card(path)
    if to_train and (small := enlarged.smaller(about["architecture"], config, stage)):
        sizes = small.data.image_size, config.data.image_size
        logging.info("%s is of images of %d²; training begins with it at %d²", name, *sizes)
        params = exported.read_parameters(path, shapes(small, stage))
        return enlarged.enlarge(params, shapes(config, stage), small, config, stage), about
    _check_fit(about["architecture"], config, stage, name)
    return exported.read_parameters(path, shapes(config, stage)), about


def _advice(stage: str, path: Path) -> str:
    """What to do with a file or folder that is no network of cdsde's."""
    if config_lib.network_group(stage) == "score":
        if path.is_dir():
            return "name the file, or the folder with model_index.json"
        for folder in path.parents[:2]:
            if registry.format_of(str(folder)):
                return f"it belongs to a folder of diffusers: name {folder}"
    return "bring published weights in with --mode=import"


def shipped_names() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted(p.stem for p in shipped_folder().glob("*.safetensors"))


def _check_fit(saved: dict, config: ConfigDict, stage: str, name: str) -> None:
    """Raises a ValueError that names the config keys in which an `architecture` differs."""
    if wrong := knowledge.differences(saved, config, stage):
        raise ValueError(
            f"{name} does not fit the config: {'; '.join(wrong)}; leave these keys as they are, or "
            f"train your own network with --mode=train --config.train.stage={stage}"
        )
