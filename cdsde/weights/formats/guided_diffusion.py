"""Opens state dicts of guided-diffusion (Dhariwal and Nichol 2021), P2-weighting and ILVR.

Shapes tell the architecture but for the heads of attention and the order of their channels, and say
nothing of the noise. `NAME.config.json` with the command line's arguments does; without it the
published settings are taken.
Source: github.com/openai/guided-diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cdsde.diffusion import schedules
from cdsde.runtime import fields as json_fields
from cdsde.weights.diffusers import networks
from cdsde.weights.formats import beside
from cdsde.weights.formats.opened import Opened
from cdsde.weights.torch import convert

# channel_mult by image size, where the argument is empty.
CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
# The arguments of the command line, and what they are where the file has none.
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "NUM_CLASSES": 1000,
}
AT_LEAST_ONE = "image_size num_channels num_res_blocks diffusion_steps NUM_CLASSES".split()
WITHOUT_EFFECT = (
    "dropout use_checkpoint use_fp16 timestep_respacing use_kl rescale_learned_sigmas"
).split()
# What the published networks have that no shape tells; two of OpenAI's networks differ.
IMAGENET_64 = {"channels": 192, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3}
IMAGENET_128 = {"channels": 256, "channel_mult": (1, 1, 2, 3, 4), "num_res_blocks": 2}
HEAD = 64  # channels


def read(path: str | Path, config: Mapping[str, Any] | None = None) -> Opened:
    """A state dict of guided-diffusion's U-Net.

    Args:
      path: a `.pt` or `.safetensors`, best an average (`ema_0.9999_*.pt`).
      config: `{"arguments": those of the command line}`; None is the one in `NAME.config.json`,
        which need not exist.

    Returns:
      The network; `path` has the form of `path_of`.

    Raises:
      ValueError: the file would execute code, is damaged, is another network, takes other images
        than coloured ones, or contradicts the configuration.
    """
    path = beside.file_of(path)
    config = beside.config_of(path, config)
    weights = convert.read_state_dict(path, plain=True)
    if re.fullmatch(r"model\d+", path.stem):
        logging.warning("%s holds weights that are not averaged; ema_* is the better file.", path)
    try:
        check_images(weights)
        if config is None:
            inferred = convert.infer_architecture(weights, "adm")
            told, arguments = _published(inferred, weights, path)
        else:
            arguments = arguments_told(config, beside.config_path(path))
            told = fields_of(arguments)
            levels = len(told["channel_mult"])
            networks.check_blocks(levels, told["num_res_blocks"], weights, path)
        inferred = convert.infer_architecture(weights, "adm", **told)
        params = convert.fitted(weights, "adm", told, consume=True)[1]
        fields = {**inferred, **told}
        form = path_of(arguments)
    except ValueError as error:
        text, named = str(error).rstrip("."), str(path.with_suffix(""))
        raise ValueError(f"{text}." if named in text else f"{path}: {text}.") from None
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
    side = None if config is None else arguments["image_size"]
    return Opened("adm", plain, form, params, side)


def check_images(weights: Mapping[str, np.ndarray]) -> None:
    """Checks that a network takes coloured images and nothing beside them.

    Raises:
      ValueError: its first convolution takes another number of channels than 3.
    """
    stem = getattr(weights.get("input_blocks.0.0.weight"), "shape", ())
    if len(stem) == 4 and stem[1] != 3:
        raise ValueError(
            f"its first convolution takes {stem[1]} channels, and images here have 3; name a "
            "network of coloured images (those for super-resolution and grey images do not fit)"
        )


def _published(
    inferred: Mapping[str, Any], weights: Mapping[str, np.ndarray], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields and arguments of the published networks, for what `inferred` leaves open."""
    widths = {v.shape[0] for k, v in weights.items() if k.endswith(".proj_out.bias")}
    # Networks of improved-diffusion have no such blocks, and always a number of heads.
    newer = inferred["resblock_updown"]
    split = newer and not _has(inferred, IMAGENET_128) and all(w % HEAD == 0 for w in widths)
    fields: dict[str, Any] = {"num_heads": 4, "num_head_channels": HEAD if split else -1}
    fields["new_attention_order"] = newer and _has(inferred, IMAGENET_64)
    arguments = dict(DEFAULTS)
    if fields["new_attention_order"]:
        arguments["noise_schedule"] = "cosine"
    heads = f"heads of {HEAD} channels" if split else "4 heads"
    order = "new" if fields["new_attention_order"] else "old"
    noise = f"{arguments['noise_schedule']} noise of {arguments['diffusion_steps']} levels"
    beside.tell_assumed(path, f"{heads} in the {order} order and {noise} for granted")
    return fields, arguments


def _has(inferred: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(inferred[name] == value for name, value in fields.items())


def arguments_told(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """All arguments of a configuration, with the command line's defaults.

    Raises:
      ValueError: one is unknown or of another type.
    """
    told = beside.section(config, "arguments", where)
    for name, default in DEFAULTS.items():
        if type(value := told.get(name, default)) is not type(default):
            shown = json_fields.shown(value).strip('"')
            raise ValueError(f"{where} sets {name} to {shown}; it must be like {default!r}")
    json_fields.check(told, where, DEFAULTS, {}, WITHOUT_EFFECT)
    for name in AT_LEAST_ONE:
        if told.get(name, 1) < 1:
            raise ValueError(f"{where} sets {name} to {told[name]}; it must be at least 1")
    return {name: told.get(name, default) for name, default in DEFAULTS.items()}


def _numbers(text: str, name: str, kind: type) -> tuple[Any, ...]:
    try:
        numbers = tuple(kind(n) for n in text.split(",") if n.strip())
    except ValueError:
        numbers = (0,)
    if len(numbers) > json_fields.LEVELS or not all(0 < n <= 2**12 for n in numbers):
        raise ValueError(
            f"{name} is '{text[:80]}'; write numbers above 0 with commas, at most "
            f"{json_fields.LEVELS}"
        )
    return numbers


def fields_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor fields of `ADMUNet` of the command line's arguments, all of them told.

    Raises:
      ValueError: the channel multipliers are not known.
    """
    side = arguments["image_size"]
    mult = _numbers(arguments["channel_mult"], "channel_mult", float)
    mult = mult or CHANNEL_MULT.get(side, ())
    if not mult:
        raise ValueError(f"channel_mult is empty, and image_size {side} has no usual one")
    asked = _numbers(arguments["attention_resolutions"], "attention_resolutions", int)
    factors = [side // n for n in asked]
    return {
        "channels": arguments["num_channels"],
        "channel_mult": tuple(int(m) if m == int(m) else m for m in mult),
        "num_res_blocks": arguments["num_res_blocks"],
        "attention_factors": tuple(2**n for n in range(len(mult)) if 2**n in factors),
        "num_heads": arguments["num_heads"],
        "num_heads_upsample": arguments["num_heads_upsample"],
        "num_head_channels": arguments["num_head_channels"],
        "use_scale_shift_norm": arguments["use_scale_shift_norm"],
        "resblock_updown": arguments["resblock_updown"],
        "new_attention_order": arguments["use_new_attention_order"],
        "out_channels": 6 if arguments["learn_sigma"] else 3,
        "num_classes": arguments["NUM_CLASSES"] if arguments["class_cond"] else None,
    }


def arguments_of(
    fields: Mapping[str, Any], path: Mapping[str, Any], image_size: int
) -> dict[str, Any]:
    """The command line's arguments of a network, the inverse of `fields_of` and `path_of`.

    Args:
      fields: constructor fields of `ADMUNet`.
      path: that of `path_of`.
      image_size: side of the images, to which the resolutions of attention refer.

    Raises:
      ValueError: the noise is none that the command line has.
    """
    alpha_bar = np.asarray(path["time"]["alpha_bar"])
    noise = [
        name
        for name in ("linear", "cosine")
        if np.allclose(alpha_bar, np.cumprod(1 - schedules.exact_beta(name, len(alpha_bar))))
    ]
    if not noise:
        raise ValueError(
            "its noise is neither linear nor cosine as in guided-diffusion, and "
            "its files can name no other; choose another config.export.format"
        )
    sides = [image_size // factor for factor in fields["attention_factors"]]
    return {
        "image_size": image_size,
        "num_channels": fields["channels"],
        "num_res_blocks": fields["num_res_blocks"],
        "num_heads": fields["num_heads"],
        "num_heads_upsample": fields.get("num_heads_upsample", -1),
        "num_head_channels": fields["num_head_channels"],
        "attention_resolutions": ",".join(map(str, sides)),
        "channel_mult": ",".join(map(str, fields["channel_mult"])),
        "class_cond": fields["num_classes"] is not None,
        "use_scale_shift_norm": fields["use_scale_shift_norm"],
        "resblock_updown": fields["resblock_updown"],
        "use_new_attention_order": fields["new_attention_order"],
        "learn_sigma": fields["out_channels"] == 6,
        "diffusion_steps": len(alpha_bar),
        "noise_schedule": noise[0],
        "predict_xstart": path["output"] == "x0",
        "rescale_timesteps": "scale" in path["time"],
        "NUM_CLASSES": fields["num_classes"] or DEFAULTS["NUM_CLASSES"],
    }


def path_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How a network of these arguments sees a noisy image, for `diffusion.paths.Path`.

    Returns:
      state "vp", output "eps" or "x0", time "levels" with data [-1, 1]; time has a "scale" where
      the network is told the index times that.

    Raises:
      ValueError: unknown noise.
    """
    steps = arguments["diffusion_steps"]
    if not 1 <= steps <= 10**5:
        raise ValueError(f"diffusion_steps is {steps}; it must be a number of noise levels")
    alpha_bar = np.cumprod(1 - schedules.exact_beta(arguments["noise_schedule"], steps))
    time: dict[str, Any] = {"kind": "levels", "alpha_bar": alpha_bar.tolist()}
    if arguments["rescale_timesteps"] and steps != 1000:
        time["scale"] = 1000 / steps
    output = "x0" if arguments["predict_xstart"] else "eps"
    return {"state": "vp", "output": output, "time": time, "data": [-1, 1]}
