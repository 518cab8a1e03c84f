"""Pixel pipelines of diffusers: a UNet2DModel and its scheduler, in one folder.

    model_index.json                        names the pipeline and the scheduler
    unet/config.json, unet/*.safetensors    or both right in the folder, as in early ones
    scheduler/scheduler_config.json         likewise

Weights are safetensors, of any variant, or a `.bin` where there are none; PyTorch is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from cdsde.networks.unet2d import DOWN_BLOCKS, UP_BLOCKS, UNet2D
from cdsde.networks.unet2d_layers import ACTIVATIONS
from cdsde.runtime import fields as json_fields
from cdsde.runtime import files
from cdsde.weights.diffusers import networks, schedule
from cdsde.weights.diffusers.writing import state_dict
from cdsde.weights.formats.opened import Opened
from cdsde.weights.torch import pickle_reader, safetensors_file

ARCH = "UNet2D"
STEM = "diffusion_pytorch_model"
VE = "ScoreSdeVeScheduler"
# Fields of config.json with their defaults; `dtype` and `remat` are ours.
FIELDS = {
    name: field.default
    for name, field in UNet2D.__dataclass_fields__.items()
    if name not in ("parent", "name", "dtype", "remat")
}
OPTIONAL = ("attention_head_dim", "norm_num_groups")  # null means something of its own
CHOICES = {
    "_class_name": ("UNet2DModel",),
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}
# Dropout is for training; num_train_timesteps belongs to a learned table of times.
WITHOUT_EFFECT = ("sample_size", "dropout", "num_train_timesteps")
OUTPUTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
VARIANCES = {
    "fixed_small": "fixedsmall",
    "fixed_small_log": "fixedsmall",
    "fixed_large": "fixedlarge",
    "learned_range": "learned",
}
VE_DEFAULTS = {"sigma_min": 0.01, "sigma_max": 1348.0}
# Of the published sampler, which is not used.
VE_WITHOUT_EFFECT = "num_train_timesteps snr sampling_eps correct_steps tensor_format".split()


def read(path: str | Path) -> Opened:
    """Opens the folder of a pipeline, such as DDPMPipeline, DDIMPipeline or ScoreSdeVePipeline.

    Raises:
      ValueError: a file is missing or damaged, a field is not supported, or weights do not fit; the
        sentence names the file, and the field or key.
    """
    folder = Path(path)
    sampler = _sampler(folder)
    unet, scheduler = (_part(folder, name) for name in ("unet", "scheduler"))
    config_file = unet / "config.json"
    config = networks.read_config(unet)
    fields, side = fields_of(config, config_file), _side(config)
    fourier = fields["time_embedding_type"] == "fourier"
    if fourier != (sampler == VE):
        raise ValueError(
            f"{config_file} has time_embedding_type '{fields['time_embedding_type']}', and "
            f"{folder / 'model_index.json'} names {sampler}; 'fourier' belongs to {VE}"
        )
    levels = None if fourier else schedule.read_scheduler(scheduler, sampler)
    seen = _vp_path(scheduler, levels, fields, config_file) if levels else _ve_path(scheduler)
    network = module(fields)
    weights = _weights(unet)
    blocks, layers = len(network.block_out_channels), network.layers_per_block
    networks.check_blocks(blocks, layers, weights, unet)
    params = networks.fit(network, inputs(network), weights, unet, consume=True)
    asked = _asked(levels) if levels else None
    return Opened(ARCH, fields, seen, params, side, asked)


def write(
    folder: str | Path,
    fields: Mapping[str, Any],
    params: Mapping,
    scheduler: Mapping[str, Any],
    size: int,
) -> None:
    """Writes a pipeline that `read` and diffusers open; parameters stay float32.

    Args:
      folder: the new folder.
      fields: constructor fields of `UNet2D`; absent ones have their defaults.
      params: its parameters, `{"params": tree}`.
      scheduler: fields of `scheduler_config.json`, `sampler_fields` among them.
      size: side of the images that the pipeline samples.

    Raises:
      OSError: a file cannot be written; one sentence.
    """
    folder = Path(folder)
    config = {**FIELDS, **fields, "sample_size": size, "_class_name": "UNet2DModel"}
    files.write_json(folder / "unet" / "config.json", config)
    arrays = state_dict(params, np.float32)
    data = safetensors.numpy.save(arrays, {"format": "pt"})
    files.write_bytes(folder / "unet" / f"{STEM}.safetensors", data)
    files.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    sampler = scheduler["_class_name"]
    index = {
        "_class_name": sampler.replace("Scheduler", "Pipeline"),
        "scheduler": ["diffusers", sampler],
        "unet": ["diffusers", "UNet2DModel"],
    }
    files.write_json(folder / "model_index.json", index)


def module(fields: Mapping[str, Any], **more) -> UNet2D:
    """The network of plain JSON fields; `more` are `dtype` and `remat`."""
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return UNet2D(**plain, **more)


def inputs(network: UNet2D) -> tuple:
    """Arguments of the network's `init`, as shapes."""
    side = 2 ** (len(network.block_out_channels) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, network.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    if network.class_embed_type == "identity":
        width = network.time_embedding_dim or 4 * network.block_out_channels[0]
        return x, t, jax.ShapeDtypeStruct((1, width), jnp.float32)
    if network.class_embed_type or network.num_class_embeds is not None:
        return x, t, jax.ShapeDtypeStruct((1,), jnp.int32)
    return x, t


def _side(config: Mapping[str, Any]) -> int | None:
    """Side of the images that the network was made for; None where it is not told, or no square."""
    size = config.get("sample_size")
    sides = set(size) if isinstance(size, list) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if type(side) is int else None


def _sampler(folder: Path) -> str:
    """Class of the scheduler, of `schedule.SAMPLERS` or `VE`."""
    path = folder / "model_index.json"
    index = json_fields.read(path, "the folder of a pipeline of diffusers has one")
    parts = {k: v for k, v in index.items() if not k.startswith("_") and v != [None, None]}
    for name, value in parts.items():
        known = name in ("unet", "scheduler") and isinstance(value, list) and len(value) == 2
        if not known or value[0] != "diffusers" or not isinstance(value[1], str):
            raise ValueError(
                f"{path} has {name} {json.dumps(value)}; only pipelines of images with a unet and "
                "a scheduler of diffusers alone are supported"
            )
    if missing := {"unet", "scheduler"} - parts.keys():
        raise ValueError(f"{path} names no {' and no '.join(sorted(missing))}; get the file again")
    if (found := parts["unet"][1]) != "UNet2DModel":
        raise ValueError(f"{path} has a unet of class {found}; only UNet2DModel is supported")
    # As diffusers has it, this pipeline makes a DDIM scheduler of any file.
    if index.get("_class_name") == "DDIMPipeline":
        return "DDIMScheduler"
    if (found := parts["scheduler"][1]) not in (*schedule.SAMPLERS, VE):
        raise ValueError(f"{path} has a scheduler of class {found}, which is not supported")
    return parts["scheduler"][1]


def _part(folder: Path, name: str) -> Path:
    """Where the files of a part are: in a folder of its own, or in that of the pipeline."""
    return folder / name if (folder / name).is_dir() else folder


def fields_of(config: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Constructor fields of `UNet2D`, all of them, from a `config.json`.

    Args:
      config: the contents of the file.
      where: the file, for the error message.

    Raises:
      ValueError: a field (named) is unknown, not supported, or contradicts another.
    """
    # Null is the default of these two; block names once had a prefix, and activations any case.
    config = {k: v for k, v in config.items() if v or k not in ("downsample_type", "upsample_type")}
    if isinstance(config.get("act_fn"), str):
        config["act_fn"] = config["act_fn"].lower()
    json_fields.check(config, where, FIELDS, CHOICES, WITHOUT_EFFECT)
    fields = {name: _plain(config, name, default, where) for name, default in FIELDS.items()}
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        fields[name] = [kind.removeprefix("UNetRes") for kind in fields[name]]
        if other := sorted(set(fields[name]) - known.keys()):
            raise ValueError(
                f"{where} has {name} {', '.join(other)}; {', '.join(known)} are supported"
            )
        skips = {known[kind].skip for kind in fields[name]}
        channels = "in_channels" if known is DOWN_BLOCKS else "out_channels"
        if len(skips) > 1 or (skips == {True} and fields[channels] != 3):
            raise ValueError(
                f"{where} has {name} {', '.join(fields[name])} and {channels} {fields[channels]}; "
                "Skip blocks need 3 channels, and others cannot be mixed with them"
            )
        if len(fields[name]) != len(fields["block_out_channels"]):
            raise ValueError(
                f"{where} has {len(fields[name])} {name} and {len(fields['block_out_channels'])} "
                "block_out_channels; they must be one for each level"
            )
        if skips == {False} and fields["norm_num_groups"] is None:
            raise ValueError(f"{where} sets norm_num_groups to null, which needs Skip blocks")
    return fields


def _plain(config: Mapping[str, Any], name: str, default: Any, where: str | Path) -> Any:
    """A field of the type of its default."""
    value = config.get(name, default)
    if name in CHOICES:
        return value
    if value is None and (default is None or name in OPTIONAL):
        return None
    if isinstance(default, tuple):
        kind, wanted = type(default[0]), "text" if isinstance(default[0], str) else "numbers"
        if not isinstance(value, list | tuple) or not value or {type(v) for v in value} != {kind}:
            raise ValueError(
                f"{where} sets {name} to {json.dumps(value)}; it must be a list of {wanted}"
            )
        good = kind is str or min(value) > 0
    elif isinstance(default, bool):
        good = isinstance(value, bool)
    elif name in ("norm_eps", "mid_block_scale_factor", "freq_shift"):
        value = json_fields.number({name: value}, name, where)
        good = value > 0 or name == "freq_shift"
    else:
        value = json_fields.number({name: value}, name, where, int)
        good = value > 0
    if not good:
        raise ValueError(f"{where} sets {name} to {json.dumps(value)}, which makes no network")
    return list(value) if isinstance(value, tuple) else value


def _vp_path(
    folder: Path, found: schedule.Scheduler, fields: Mapping[str, Any], config_file: Path
) -> dict:
    """How a network of DDPM's levels sees an image."""
    channels, outputs = fields["in_channels"], fields["out_channels"]
    if found.variance == "learned":
        raise ValueError(
            f"{folder / 'scheduler_config.json'} sets variance_type to 'learned', where channels "
            "are the variance itself; only 'learned_range', where they lie between two, is read"
        )
    learned = found.variance == "learned_range"
    if outputs != channels * (1 + learned):
        raise ValueError(
            f"{config_file} has {channels} in_channels and {outputs} out_channels, and "
            f"{folder / 'scheduler_config.json'} has variance_type {json.dumps(found.variance)}; "
            "a learned variance, and only that, doubles the channels"
        )
    return {
        "state": "vp",
        "output": OUTPUTS[found.prediction],
        "time": {"kind": "levels", "alpha_bar": [float(a) for a in found.alpha_bar]},
        "data": [-1, 1],
    }


def _asked(found: schedule.Scheduler) -> dict[str, Any]:
    """What a scheduler asks for, plain JSON values: `Opened.sampler`."""
    return {
        "clip": found.clip,
        "thresholding": list(found.threshold) if found.threshold else None,
        "variance": VARIANCES.get(found.variance or "", "fixedsmall"),
        "spacing": "index" if found.spacing == "linspace" else found.spacing,
        "offset": found.offset,
        "clean": found.clean,
    }


def sampler_fields(asked: Mapping[str, Any] | None, learned: bool) -> dict[str, Any]:
    """The fields of a scheduler that ask for `Opened.sampler`; for None, those of DDPM.

    Args:
      asked: what its publisher asks for.
      learned: whether the network learned the variance.
    """
    fixed = "fixed_large" if asked and asked["variance"] == "fixedlarge" else "fixed_small"
    of_ddpm = {"_class_name": "DDPMScheduler"}
    of_ddpm["variance_type"] = "learned_range" if learned else fixed
    if not asked:
        return {**of_ddpm, "clip_sample": True}
    spacing = "linspace" if asked["spacing"] == "index" else asked["spacing"]
    found = {"timestep_spacing": spacing, "steps_offset": asked["offset"]}
    found["clip_sample"] = asked["clip"] is not None
    if asked["clip"] is not None:
        found["clip_sample_range"] = asked["clip"]
    if isinstance(asked["thresholding"], list | tuple):  # version 0.2 kept True or False alone
        ratio, largest = asked["thresholding"]
        found |= {"thresholding": True, "dynamic_thresholding_ratio": ratio}
        found["sample_max_value"] = largest
    if asked.get("clean", 1.0) != 1:
        return {**found, "_class_name": "DDIMScheduler", "set_alpha_to_one": False}
    return {**found, **of_ddpm}


def _ve_path(folder: Path) -> dict:
    """How a network of the VE process sees an image in [0, 1]."""
    path = folder / "scheduler_config.json"
    config = json_fields.read(path, "it contains the noise levels of the model")
    json_fields.check(config, path, VE_DEFAULTS, {"_class_name": (VE,)}, VE_WITHOUT_EFFECT)
    sigma = {
        name: json_fields.number(config, name, path, default=default)
        for name, default in VE_DEFAULTS.items()
    }
    if not 0 < sigma["sigma_min"] < sigma["sigma_max"]:
        raise ValueError(
            f"{path} sets sigma_min to {sigma['sigma_min']} and sigma_max to "
            f"{sigma['sigma_max']}; they must be above 0, and ascend"
        )
    return {
        "state": "ve",
        "output": "score_ve",
        "time": {"kind": "sigma"},
        "data": [0, 1],
        **sigma,
    }


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a unet under today's names."""
    path, found = _weights_file(folder), {}
    for name in networks.shards(path) if path.suffix == ".json" else [path.name]:
        found |= _arrays(folder / name)
    found = {networks.current_name(name): value for name, value in found.items()}
    if "time_proj.weight" in found:
        found.pop("time_proj.W", None)  # the same numbers once more, in early files
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    if path.suffix == ".safetensors":
        return safetensors_file.load(path)
    found = pickle_reader.load(path)
    if not isinstance(found, dict) or not all(isinstance(x, np.ndarray) for x in found.values()):
        raise ValueError(f"{path} is no plain table of named tensors; get the file again")
    return found


def _weights_file(folder: Path) -> Path:
    """The file without a variant in its name, or else the only one; safetensors before `.bin`.

    A `.json` is the index of several.
    """
    for suffix in (".safetensors", ".bin"):
        if (index := folder / f"{STEM}{suffix}.index.json").is_file():
            return index
        if (plain := folder / f"{STEM}{suffix}").is_file():
            return plain
        others = sorted(folder.glob(f"{STEM}*{suffix}"))
        if len(others) == 1:
            return others[0]
        if others:
            names = ", ".join(other.name for other in others)
            raise ValueError(f"{folder} has {names}; leave one of them there")
    raise ValueError(f"{folder} holds no weights: expected {STEM}.safetensors (or .bin) there")
