"""Where a network's parameters come from when images are translated.

In this order: the stage's newest checkpoint in the work folder; else `config.weights.STAGE`, a
name of the package ("shipped:NAME") or a file. Nothing is ever initialised at random here, and
nothing is downloaded.

Shipped weights are float16 safetensors with the architecture beside them, in
`cdsde/assets/checkpoints/NAME.{safetensors,json}`.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import logging
from ml_collections import ConfigDict

from cdsde import checkpoint, models
from cdsde import config as config_lib

SHIPPED = "shipped:"
# What decides whether parameters fit, and what they mean, beside the network's own group.
CONTEXT = ("data.image_size", "sde.schedule", "sde.num_steps")


def folder() -> Path:
    """Where the shipped checkpoints lie."""
    return Path(str(resources.files("cdsde") / "assets" / "checkpoints"))


def architecture(config: ConfigDict, stage: str) -> dict:
    """What a checkpoint of the stage must agree on: its network's group and the SDE."""
    net = json.loads(config[stage].to_json())
    return {"network": net, **{key: config_lib.get(config, key) for key in CONTEXT}}


def load(config: ConfigDict, workdir, stage: str):
    """Parameters of a stage's network (host arrays) and a line that says where they are from.

    Raises:
      ValueError: there are none, or they do not fit the config; the text says what to do.
    """
    step = checkpoint.latest_step(workdir, stage)
    if step is not None:
        params = checkpoint.open_ema(workdir, stage, shapes(config, stage))
        origin = f"{checkpoint.stage_folder(workdir, stage)}/{step}"
    elif config.weights[stage] is None:
        raise ValueError(
            f"{config.method} needs a trained {stage} network, and there is none in "
            f"{checkpoint.stage_folder(workdir, stage)}: train it with --mode=train "
            f"--config.train.stage={stage}, or name weights with --config.weights.{stage}=..."
        )
    else:
        name = config.weights[stage]
        params = _load_named(config, stage, name)
        origin = name
    params = jax.tree.map(np.asarray, params)
    origin = f"{origin} (sha256 {digest(params)[:12]})"
    logging.info("%s: %s", stage, origin)
    return params, origin


def shapes(config: ConfigDict, stage: str):
    """The stage's parameter tree as ShapeDtypeStructs on one local device."""
    tree = jax.eval_shape(models.MODELS[stage](config).init, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), tree)


def digest(params) -> str:
    """SHA-256 over names, shapes and values of a parameter tree: names the network in results."""
    h = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        h.update(f"{name}{value.shape}{value.dtype}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    return h.hexdigest()


def flatten(params) -> dict[str, np.ndarray]:
    """Nested parameter dicts → {"a/b/kernel": array}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}


def unflatten(flat: dict[str, np.ndarray]) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _load_named(config: ConfigDict, stage: str, name: str):
    if not name.startswith(SHIPPED):
        raise ValueError(
            f"config.weights.{stage}={name} is not known; give {SHIPPED}NAME with NAME one of "
            f"{', '.join(shipped_names()) or 'none'}"
        )
    stem = name.removeprefix(SHIPPED)
    path = folder() / f"{stem}.safetensors"
    if not path.exists():
        raise ValueError(
            f"config.weights.{stage}={name}: the package has no such weights; there are "
            f"{', '.join(shipped_names()) or 'none'}"
        )
    card = json.loads((folder() / f"{stem}.json").read_text())
    _check_architecture(card["architecture"], architecture(config, stage), stage, name)
    flat = safetensors.numpy.load_file(path)
    return unflatten({k: np.asarray(v, jnp.float32) for k, v in flat.items()})


def shipped_names() -> list[str]:
    """Names of the checkpoints in the package."""
    return sorted(p.stem for p in folder().glob("*.safetensors"))


def ship(config: ConfigDict, workdir, stage: str, name: str, card: dict, into=None) -> Path:
    """Write a stage's averaged parameters as a shipped checkpoint (float16) with its card."""
    params, _ = load(config, workdir, stage)
    into = Path(into or folder())
    into.mkdir(parents=True, exist_ok=True)
    half = {k: v.astype(np.float16) for k, v in flatten(params).items()}
    path = into / f"{name}.safetensors"
    safetensors.numpy.save_file(half, path)
    card = {**card, "architecture": architecture(config, stage)}
    (into / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return path


def _check_architecture(saved: dict, wanted: dict, stage: str, name: str) -> None:
    """Raise ValueError naming the keys of the config in which a checkpoint differs."""
    saved = {**{f"{stage}.{k}": v for k, v in saved["network"].items()}, **saved}
    wanted = {**{f"{stage}.{k}": v for k, v in wanted["network"].items()}, **wanted}
    # Neither changes the function that the weights compute when sampling.
    ignored = ("network", f"{stage}.dropout")
    wrong = [
        f"config.{k} is {wanted.get(k)}, the weights have {saved.get(k)}"
        for k in sorted(set(saved) | set(wanted))
        if k not in ignored and _plain(saved.get(k)) != _plain(wanted.get(k))
    ]
    if wrong:
        raise ValueError(
            f"{name} does not fit the config: {'; '.join(wrong)}; leave these keys as they are, or "
            f"train your own network with --mode=train --config.train.stage={stage}"
        )


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
