"""`--mode=import` of published weights and `--mode=export` of trained networks.

Exported files have published names (PyTorch or safetensors) for use with published code, or cdsde's
format (float16, with a card that describes the training), which `config.weights` can name. Score
networks can also be exported as pipelines of diffusers.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data.inputs import tokenizer_of
from cdsde.networks import build
from cdsde.networks.features.vgg import FirstLayers
from cdsde.networks.stable_diffusion import small
from cdsde.runtime import files, records
from cdsde.weights import checkpoint, diffusers, exported, hub, outgoing, resolve
from cdsde.weights.formats import (
    beside,
    diffusers_unet,
    guided_diffusion,
    guided_keys,
    remarks,
    unet2d_of,
)
from cdsde.weights.torch import convert

MODULES = {
    "score": build.score_module,
    "source_score": build.score_module,
    "classifier": build.classifier_module,
    "vgg": lambda config: FirstLayers(),
    "cut": lambda config: build.gan_modules(config)[0],
    "fastcut": lambda config: build.gan_modules(config)[0],
}


def kind_of(config: ConfigDict, stage: str) -> str:
    """The published format, a key of `kinds.KINDS`, of a stage's network (of a GAN: generator)."""
    if stage in config_lib.GANS:
        return "cut_generator"
    if stage in config_lib.FEATURES:
        return stage
    return config.score.arch if config_lib.network_group(stage) == "score" else "adm_encoder"


def import_weights(config: ConfigDict, workdir) -> None:
    """Converts each file that `config.weights` names into a checkpoint of `workdir`.

    Nothing is written unless all files fit.

    Raises:
      ValueError: no file is named, a file does not fit the config (the message lists the keys that
        differ and the config value that is likely wrong), or a checkpoint already exists.
    """
    named = {
        stage: path
        for stage, path in config.weights.items()
        if path is not None and not path.startswith(resolve.SHIPPED)
    }
    if not named:
        raise ValueError("nothing to import: name files with --config.weights.score=PATH and so on")
    for stage in named:
        checkpoint.check_none(workdir, stage)
    found = {stage: _imported(config, stage, path) for stage, path in named.items()}
    plain = json.loads(config.to_json_best_effort())
    for stage, params in found.items():
        folder = checkpoint.save_imported(workdir, stage, params, plain)
        count = build.count_parameters(params) / 1e6
        logging.info("%s: %.2f M parameters from %s into %s", stage, count, named[stage], folder)


def _imported(config: ConfigDict, stage: str, name: str) -> dict:
    """The parameters in a file that `config.weights` names."""
    if config_lib.network_group(stage) == "score" and config.score.arch == "published":
        return remarks.read(config, name).params
    _check_published(config, stage)
    return _published_params(config, stage, hub.local(name))


# What published networks see: pixels, and nothing beside them.
_OF_PIXELS = {"patch_size": 1, "fourier": ()}
# Keys of fields that have another name in the network.
_KEYS = {
    "attention_factors": "attention_resolutions",
    "resamp_with_conv": "conv_resample",
    "image_size": "data.image_size",
}
# Kinds whose first convolution takes any number of channels, and its name.
_STEMS = {"adm": "input_blocks_0_0", "adm_encoder": "input_blocks_0_0", "ddpm": "conv_in"}


def _published_params(config: ConfigDict, stage: str, path: Path):
    """The parameters in a published file.

    Raises:
      ValueError: they do not fit; the message names the keys of the config.
    """
    kind = kind_of(config, stage)
    if kind == "adm":
        guided_keys.check(config, path)
    try:
        params = convert.load_torch(path, kind, **_fields(config, stage))[1]
    except convert.Mismatch as error:
        if not error.wrong:
            raise
        parts = [_difference(config, stage, field, *both) for field, both in error.wrong.items()]
        raise ValueError(f"{path} does not fit the config: {'; '.join(parts)}") from error
    if kind in _STEMS and (n := params["params"][_STEMS[kind]]["kernel"].shape[-2]) != 3:
        raise ValueError(
            f"{path} does not fit the config: its network takes images of {n} channels, and images "
            "here have 3; name a network of coloured images"
        )
    return params


def _difference(config: ConfigDict, stage: str, field: str, ours, theirs) -> str:
    """What differs between a network of the config and a file, with the key that decides it."""
    if field == "num_classes":
        return f"its network takes a class of {theirs}, and the networks of cdsde take none"
    if field == "out_channels" and stage == "classifier":
        return f"it knows {theirs} domains, and config.data.domains (or source and target) {ours}"
    group, at = config_lib.network_group(stage), ""
    if field == "out_channels" and group == "score" and {ours, theirs} == {3, 6}:
        return f"config.score.learn_sigma is {ours == 6}, the file has {theirs == 6}"
    if field == "attention_factors":
        size = config.data.image_size
        ours, theirs = (tuple(size // factor for factor in both) for both in (ours, theirs))
        at = f" at config.data.image_size={size}"
    key = _KEYS.get(field, field)
    key = key if "." in key else f"{group}.{key}"
    return f"config.{key} is {ours}, the file has {theirs}{at}"


def export_weights(config: ConfigDict, workdir) -> Path:
    """Writes a stage's averaged parameters to `config.export.path` and returns the path.

    Raises:
      ValueError: there is no checkpoint, or the format is "published" and published code has no
        such network.
    """
    stage = config.export.stage
    if stage in config_lib.LATENT:
        return export_model(config, workdir)
    if config_lib.network_group(stage) == "score" and config.score.arch == "published":
        return outgoing.export(config, workdir)
    if config.export.format == "diffusers":
        return export_pipeline(config, workdir)
    if config.export.format == "published":
        _check_published(config, stage)
    default = Path(workdir) / "export" / f"{stage}.safetensors"
    path = Path(config.export.path or default)
    if config.export.format == "cdsde" and path.suffix != ".safetensors":
        raise ValueError(
            f"config.export.path={path} must end in .safetensors: config.export.format=cdsde "
            "writes no other files"
        )
    about = _guided_diffusion_of(config, stage) if config.export.format == "published" else None
    params, origin = resolve.load(config, workdir, stage)
    if config.export.format == "published":
        convert.save_state_dict(path, params, kind_of(config, stage))
        if about is not None:
            files.write_json(beside.config_path(path), about)
    else:
        exported.save(path, config, stage, params, card(config, workdir, stage))
    logging.info("%s of %s written to %s", stage, origin, path)
    return path


def _guided_diffusion_of(config: ConfigDict, stage: str) -> dict | None:
    """The file beside an ADM score network, which says what its names and shapes do not.

    None for other networks.

    Raises:
      ValueError: guided-diffusion has no such noise.
    """
    if kind_of(config, stage) != "adm":
        return None
    fields = dict(vars(build.score_module(config)))
    noise = {"time": {"alpha_bar": build.schedule_of(config).alpha_bar}, "output": "eps"}
    size = config.data.image_size
    try:
        return {"arguments": guided_diffusion.arguments_of(fields, noise, size)}
    except ValueError as error:
        raise ValueError(f"the {stage} network cannot be exported as published: {error}") from None


def export_model(config: ConfigDict, workdir) -> Path:
    """Writes the latent diffusion model of `workdir` in diffusers' layout and returns the folder.

    Raises:
      ValueError: the model is not trained.
    """
    (vae, _), (latent, origin) = (resolve.load(config, workdir, s) for s in config_lib.LATENT)
    folder = Path(config.export.path or Path(workdir) / "export" / "model")
    parts = diffusers.Parts(
        (small.unet(config), latent["unet"]),
        (small.autoencoder(config), vae),
        (small.text_encoder(config), latent["text_encoder"]),
        float(latent["factor"]),
        tokenizer_of(config),
    )
    diffusers.save(folder, parts)
    cards = {stage: card(config, workdir, stage) for stage in config_lib.LATENT}
    files.write_json(folder / "card.json", cards)
    logging.info("%s written to %s", origin, folder)
    return folder


def export_pipeline(config: ConfigDict, workdir) -> Path:
    """Writes a score network as a pipeline of diffusers and returns the folder.

    Raises:
      ValueError: there is no checkpoint, or diffusers has no such network.
    """
    stage = config.export.stage
    if config_lib.network_group(stage) != "score":
        raise ValueError(
            f"config.export.format is diffusers, and config.export.stage is {stage}; pipelines of "
            "diffusers are made of score networks"
        )
    for key, plain in _OF_PIXELS.items():
        if (value := config.score[key]) != plain:
            raise ValueError(
                f"config.score.{key} is {value}; networks of diffusers have {plain}, so export the "
                "format cdsde"
            )
    params, origin = resolve.load(config, workdir, stage)
    try:
        fields, params = unet2d_of.of_network(build.score_module(config), params)
    except ValueError as error:
        raise ValueError(f"the {stage} network cannot be exported to diffusers: {error}") from None
    folder = Path(config.export.path or Path(workdir) / "export" / stage)
    scheduler = scheduler_of(config)
    diffusers_unet.write(folder, fields, params, scheduler, config.data.image_size)
    logging.info("%s of %s written to %s", stage, origin, folder)
    return folder


def scheduler_of(config: ConfigDict) -> dict:
    """Fields of the DDPMScheduler whose noise levels and prediction are those of the config."""
    learned = config.score.arch == "adm" and config.score.learn_sigma
    return {
        "num_train_timesteps": config.sde.num_steps,
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[config.sde.schedule],
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[config.score.prediction],
        **diffusers_unet.sampler_fields(None, learned),
    }


def _log_rows(log: Path) -> list[dict[str, float]]:
    """The rows of a training log; none if one of them is damaged."""
    try:
        with log.open(newline="", encoding="utf-8") as f:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]
    except (TypeError, ValueError):  # a row of another length, or no numbers
        return []
    whole = all({"step", "steps_per_second"} <= row.keys() for row in rows)
    return rows if whole else []


def card(config: ConfigDict, workdir, stage: str) -> dict:
    """A trained network's provenance: training config, last log row, hardware and versions.

    Raises:
      ValueError: there is no checkpoint, or its training log is missing or damaged.
    """
    instead = ", or with --config.export.format=published" if stage in MODULES else ""
    step = checkpoint.newest_whole(workdir, stage)
    if step is None:
        raise ValueError(
            f"{checkpoint.stage_folder(workdir, stage)} has no checkpoint, and a card describes "
            f"the training of one; export from the work folder that the {stage} was trained "
            f"in{instead}"
        )
    trained = checkpoint.saved_config(workdir, stage, step)
    log = Path(workdir) / "logs" / stage / "metrics.csv"
    rows = _log_rows(log) if log.exists() else []
    if not rows:
        fault = "is damaged" if log.exists() else "does not exist"
        raise ValueError(
            f"{log} {fault}, but the card needs it; export from the work folder "
            f"that the {stage} was trained in{instead}"
        )
    used = config_lib.stage_training(ConfigDict(trained), stage)  # with `train.steps` and the like
    return {
        "stage": stage,
        "step": step,
        "seed": trained["train"]["seed"],
        "data": trained["data"],
        "training": {key: used[key] for key in trained["train"][config_lib.network_group(stage)]},
        "last_log_row": rows[-1],
        "hours": _hours(rows),
        **records.provenance(),
    }


def _hours(rows: list[dict]) -> float:
    """Training time in hours, without compilation.

    A row's rate holds for the steps since the row before it. It is 0 where that is only the first
    step of a run, which compiles.
    """
    seconds, before = 0.0, 0.0
    for row in rows:
        if row["steps_per_second"] > 0:
            seconds += (row["step"] - before) / row["steps_per_second"]
        before = row["step"]
    return seconds / 3600


def _fields(config: ConfigDict, stage: str) -> dict:
    """The network's constructor fields according to the config."""
    module = MODULES[stage](config)
    names = set(type(module).__dataclass_fields__) - {"name", "parent"}
    return {name: getattr(module, name) for name in names}


def _check_published(config: ConfigDict, stage: str) -> None:
    if stage not in MODULES:
        raise ValueError(
            f"there is no published format of the {stage}; import and export support "
            f"{', '.join(MODULES)}"
        )
    if stage in config_lib.FEATURES:
        return
    group = config_lib.network_group(stage)
    for key, plain in {**_OF_PIXELS, "group_channels": 1, "prediction": "eps"}.items():
        if (value := config[group].get(key, plain)) != plain:
            raise ValueError(
                f"config.{group}.{key} is {value}; published networks have {plain}, so there is no "
                "published format of this network"
            )
