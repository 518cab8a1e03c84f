"""Opens checkpoints of score_sde_pytorch (Song et al. 2021): DDPM++ and NCSN++.

A checkpoint is `{"model", "ema", "optimizer", "step"}`. Published results are those of the average,
a list without names in the order of the model's parameters; what is not trained is in the model
alone. The names and shapes tell the architecture, and `NAME.config.json`, with the repository's
field names, whatever else there is.
Source: github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cdsde.networks.ncsnpp import NCSNpp
from cdsde.runtime import fields as json_fields
from cdsde.weights.formats import beside
from cdsde.weights.formats.opened import Opened
from cdsde.weights.torch import pickle_reader, plain_objects

# Our fields -> the repository's, in "model".
FIELDS = {
    "channels": "nf",
    "channel_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "embedding": "embedding_type",
    "fir": "fir",
    "fir_kernel": "fir_kernel",
    "progressive": "progressive",
    "progressive_input": "progressive_input",
    "progressive_combine": "progressive_combine",
    "skip_rescale": "skip_rescale",
    "scale_by_sigma": "scale_by_sigma",
    "nonlinearity": "nonlinearity",
}
HONOURED = {*FIELDS.values(), "attn_resolutions", "beta_min", "beta_max", "num_scales"}
HONOURED |= {"sigma_min", "sigma_max"}
ONLY = {
    "name": ("ncsnpp",),
    "normalization": ("GroupNorm",),
    "resblock_type": ("biggan",),
    "attention_type": ("ddpm",),
    "conditional": (True,),
    "conv_size": (3,),
}
WITHOUT_EFFECT = ("dropout", "ema_rate", "resamp_with_conv", "init_scale", "fourier_scale")
# What the fields of a configuration look like.
EXAMPLES: dict[str, Any] = {
    "nf": 128,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 4,
    "attn_resolutions": [16],
    "embedding_type": "positional",
    "fir": False,
    "fir_kernel": [1.0, 3.0, 3.0, 1.0],
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "skip_rescale": True,
    "scale_by_sigma": False,
    "nonlinearity": "swish",
    "image_size": 256,
    "centered": False,
    "num_channels": 3,
}
DEFAULTS = {"fir_kernel": [1, 3, 3, 1], "progressive_combine": "sum", "nonlinearity": "swish"}
LONGEST = 32  # a list in a configuration
CONFIGURATION = "the configuration"  # of error messages, which begin with the file
LARGEST_BETA = 1000  # published: 20
SDES = ("vpsde", "subvpsde", "vesde")


def read(path: str | Path, config: Mapping[str, Any] | None = None) -> Opened:
    """A checkpoint of score_sde_pytorch, with its averaged weights.

    Args:
      path: a `.pth`.
      config: the repository's configuration, `{"training": .., "data": .., "model": ..}`; None is
        the one in `NAME.config.json`, and without one the published pairs: Fourier features with
        VE, positions without a residual pyramid with VP.

    Returns:
      The network; `path` has the forms of `path_of`.

    Raises:
      ValueError: the file would execute code, is damaged, has no average, does not tell its
        process, or contradicts the configuration.
    """
    path = beside.file_of(path)
    config = beside.config_of(path, config)
    weights = pickle_reader.load(path, plain_objects.NUMPY_SCALARS, _averaged)
    sigmas = np.asarray(weights.pop("sigmas", np.zeros(0)), np.float64)
    try:
        found = infer(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if config is None:
        ve = found["embedding"] == "fourier"
        _check_told(found, path)
        kind = "a VE process with pictures in [0, 1]"
        kind = kind if ve else "a VP process of β 0.1 to 20, not a sub-VP one,"
        beside.tell_assumed(path, f"{kind} for granted")
        config = {"training": {"sde": SDES[2 * ve]}, "data": {"centered": not ve}, "model": {}}
        fields = {**found, "scale_by_sigma": ve, "centered": not ve}
        # Where the file does not tell, as DDPM++, which resamples by means.
        pyramid = {found.get("progressive", "none"), found.get("progressive_input", "none")}
        fields.setdefault("fir", pyramid != {"none"})
    else:
        beside.section(config, "training", beside.config_path(path))
        told = fields_of(config, len(found["channel_mult"]), beside.config_path(path))
        beside.check_same(told, found, path)
        fields = {**found, **told}
    try:
        form = path_of(config, sigmas)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    module = NCSNpp(**beside.tupled(fields))
    side = 2 ** (len(fields["channel_mult"]) - 1)
    inputs = (jnp.zeros((1, side, side, fields["out_channels"])), jnp.ones(1))
    params = beside.fitted(module, inputs, weights, path)
    return Opened("NCSNpp", fields, form, params, config.get("data", {}).get("image_size"))


def _check_told(found: Mapping[str, Any], path: Path) -> None:
    """Checks that a network without a configuration is of a published pair.

    Raises:
      ValueError: it has positions and a residual pyramid, as networks of all three processes.
    """
    if (found["embedding"], found.get("progressive_input")) == ("positional", "residual"):
        raise ValueError(
            f"{path} does not say its process: networks with positions and a residual pyramid are "
            "those of cifar10_ncsnpp with VP, sub-VP or VE of discrete levels; write the "
            f"configuration of its training into {beside.config_path(path).name} beside it"
        )


def _averaged(content: Any) -> dict[str, Any]:
    """The averaged weights by their names, with what is not averaged."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise pickle_reader.Unsuitable(
            "is no checkpoint of score_sde_pytorch: it has no 'model'; check which file it is."
        )
    ema = content.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list):
        raise pickle_reader.Unsuitable(
            "has no averaged weights (ema.shadow_params), which published results use: pass a "
            "checkpoint that has them."
        )
    model = {re.sub(r"^(module\.)+", "", str(name)): value for name, value in model.items()}
    for value in (*shadow, *model.values()):
        if not isinstance(value, pickle_reader.Tensor):
            raise pickle_reader.Unsuitable("holds something else than tensors among its weights.")
    fixed = [n for n in model if n == "sigmas" or re.fullmatch(r"all_modules\.\d+\.W", n)]
    names = [name for name in model if name not in fixed]
    if len(names) != len(shadow):
        raise pickle_reader.Unsuitable(
            f"has {len(shadow)} averaged weights for {len(names)} parameters, so that nobody can "
            "tell which is which: get the file again."
        )
    differ = [n for n, s in zip(names, shadow, strict=True) if model[n].shape != s.shape]
    if differ:
        raise pickle_reader.Unsuitable(
            f"has averaged weights of other shapes than its parameters ({', '.join(differ[:6])}): "
            "get the file again."
        )
    return {**dict(zip(names, shadow, strict=True)), **{name: model[name] for name in fixed}}


def _kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a module is, by the names and shapes of its parameters."""
    if set(shapes) == {"W"}:
        return "fourier"
    if set(shapes) == {"weight", "bias"}:
        return {1: "norm", 2: "linear", 4: "conv"}.get(len(shapes["weight"]), "?")
    if "NIN_0.W" in shapes:
        return "attention"
    if "Dense_0.weight" in shapes and len(shapes.get("Conv_0.weight", ())) == 4:
        around = shapes.get("Conv_2.weight", (0, 1))
        return "resampling" if around[0] == around[1] else "block"
    if "Conv2d_0.weight" in shapes:
        return "fir convolution"
    if len(shapes.get("Conv_0.weight", ())) == 4:
        return "image" if shapes["Conv_0.weight"][2:] == (1, 1) else "convolution"
    return "?"


def infer(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor fields of `NCSNpp` that names and shapes tell, as plain JSON values.

    Args:
      state_dict: published names, without `module.`, to anything with a shape.

    Raises:
      ValueError: they are not those of a DDPM++ or NCSN++.
    """
    modules: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, value in state_dict.items():
        if match := re.fullmatch(r"all_modules\.(\d{1,5})\.(.+)", name):
            modules.setdefault(int(match[1]), {})[match[2]] = tuple(value.shape)
    order = [modules[index] for index in sorted(modules)]
    kinds = [_kind(shapes) for shapes in order]
    start = int(kinds[:1] == ["fourier"]) + 2
    numbered = zip(sorted(modules), kinds, strict=True)
    strange = [f"all_modules.{n}" for n, kind in numbered if kind == "?"]
    resamplings = [n for n, kind in enumerate(kinds) if kind == "resampling"]
    levels = len(resamplings) // 2 + 1
    # Each level has n blocks on the way down and n + 1 on the way up; the middle has 2.
    blocks, rest = divmod(kinds.count("block") - 2 - levels, 2 * levels)
    if (
        strange
        or kinds[start - 2 : start + 1] != ["linear", "linear", "conv"]
        or rest
        or blocks < 1
    ):
        where = f": {', '.join(strange[:6])} is of no known kind" if strange else ""
        raise ValueError(
            "its layers are not those of a DDPM++ or NCSN++ with blocks of BigGAN, which alone "
            f"are known{where}"
        )
    stem = order[start]["weight"]
    fields: dict[str, Any] = {
        "channels": stem[0],
        "channel_mult": [],
        "num_res_blocks": blocks,
        "attention_factors": [],
        "embedding": "fourier" if kinds[0] == "fourier" else "positional",
        "out_channels": stem[1],
    }
    at = start + 1
    for level in range(levels):
        if at + 1 >= len(kinds) or kinds[at] != "block":
            raise ValueError("its blocks are in no order of a DDPM++ or NCSN++")
        width = order[at]["Conv_0.weight"][0]
        if not stem[0] or width % stem[0]:
            raise ValueError(f"its level {level} has {width} channels, no multiple of {stem[0]}")
        fields["channel_mult"].append(width // stem[0])
        attended = kinds[at + 1] == "attention"
        if attended:
            fields["attention_factors"].append(2**level)
        at += blocks * (1 + attended)
        if level < levels - 1:
            at += 1  # the block that halves
            after = kinds[at] if at < len(kinds) else "?"
            at += after in ("image", "convolution", "fir convolution")
    return fields | (_pyramid(kinds, order) if levels > 1 else {})


def _pyramid(kinds: list[str], order: list[dict]) -> dict[str, Any]:
    """The fields of how smaller images enter and leave the network, of `infer`'s layers."""
    found = set(kinds) & {"image", "convolution", "fir convolution"}
    fields: dict[str, Any] = {
        "progressive": "none" if kinds.count("norm") == 1 else "output_skip",
        "progressive_input": "residual" if found else "none",
    }
    if "image" in found:
        fields["progressive_input"] = "input_skip"
        first = kinds.index("image")
        doubled = order[first + 1].get("Conv_0.weight", (0, 0))[1]
        same = doubled == order[first]["Conv_0.weight"][0]
        fields["progressive_combine"] = "sum" if same else "cat"
    elif found:
        fields["fir"] = "fir convolution" in found
    return fields


def fields_of(config: Mapping[str, Any], levels: int, where: Path) -> dict[str, Any]:
    """Constructor fields of `NCSNpp` of a configuration, as plain JSON values.

    Args:
      config: the repository's configuration.
      levels: the number of levels.
      where: the file, for error messages.

    Raises:
      ValueError: it lacks a field, or has one that is unknown or not supported.
    """
    model, data = (beside.section(config, name, where) for name in ("model", "data"))
    json_fields.check(model, where, HONOURED, ONLY, WITHOUT_EFFECT)
    told = {**model, **{name: data.get(name) for name in ("image_size", "centered")}}
    told["num_channels"] = data.get("num_channels", 3)
    for name, example in EXAMPLES.items():
        value: Any = told.get(name, DEFAULTS.get(name))
        values = value if isinstance(example, list) else [value]
        plain = isinstance(values, list | tuple) and len(values) <= LONGEST
        known = type(example[0] if isinstance(example, list) else example)
        if not plain or not all(_is(n, known) for n in values):
            what = "is missing" if value is None else f"is {str(value)[:40]}"
            raise ValueError(f"{where}: {name} {what}; it must look like {json.dumps(example)}")
        told[name] = list(value) if isinstance(example, list) else value
    if not 0 < sum(told["fir_kernel"]) < 1e9:
        raise ValueError(
            f"{where}: fir_kernel is {told['fir_kernel']}; the sum of a filter must be above 0"
        )
    fields = {ours: told[name] for ours, name in FIELDS.items()}
    side, factors = told["image_size"], [2**level for level in range(levels)]
    fields["attention_factors"] = [f for f in factors if side // f in told["attn_resolutions"]]
    fields |= {"centered": told["centered"], "out_channels": told["num_channels"]}
    if levels == 1 or fields["progressive_input"] != "input_skip":
        fields.pop("progressive_combine")  # which nothing asks for
    return fields


def _is(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int | float if kind is float else kind)


def path_of(config: Mapping[str, Any], sigmas: np.ndarray | None = None) -> dict[str, Any]:
    """How a network of a configuration sees a noisy image, for `diffusion.paths.Path`.

    Args:
      config: the repository's configuration.
      sigmas: the file's noise levels of VE, decreasing.

    Returns:
      state, output, time, data and sigma_max, of VE also sigma_min. VE: the output is the score of
      x0 + σ n. VP: the output is ε, since the score is that over -s; the time is 999 times the
      continuous one, or, where training was not continuous, the index of a level. Sub-VP: the same
      with the state a x0 + (1 - a²) n.

    Raises:
      ValueError: another process, or levels that contradict the weights.
    """
    training, data, model = (config.get(name, {}) for name in ("training", "data", "model"))
    sde, continuous = training.get("sde"), training.get("continuous", True)
    if sde not in SDES:
        raise ValueError(f"training.sde is '{sde}'; known are {', '.join(SDES)}")
    if not isinstance(continuous, bool):
        raise ValueError(f"training.continuous is {continuous}; it must be true or false")
    form: dict[str, Any] = {"data": [-1, 1] if data.get("centered", False) else [0, 1]}
    if sde == "vesde":
        return {**form, **_ve(model, continuous, sigmas)}
    low, high = (_constant(model, f"beta_{end}", n) for end, n in (("min", 0.1), ("max", 20.0)))
    if not 0 <= low < high <= LARGEST_BETA:
        raise ValueError(
            f"the configuration has beta_min {low} and beta_max {high}; they must ascend from 0 or "
            f"more to at most {LARGEST_BETA}"
        )
    kind = sde.removesuffix("sde")
    time: dict[str, Any] = {"kind": kind, "beta_min": low, "beta_max": high, "scale": 999}
    if not continuous and kind == "vp":
        count = json_fields.number(model, "num_scales", CONFIGURATION, int, 1000)
        if count <= high:
            raise ValueError(
                f"the configuration has num_scales {count} and beta_max {high}; the noise of a "
                "level, beta_max over num_scales, must be below 1"
            )
        beta = np.linspace(low / count, high / count, count)
        time = {"kind": "levels", "alpha_bar": np.cumprod(1 - beta).tolist()}
    square = math.exp(-(low + high) / 2)  # a² at time 1
    form["sigma_max"] = (1 - square) ** (0.5 if kind == "vp" else 1.0) / math.sqrt(square)
    return {"state": kind, "output": "eps", "time": time, **form}


def _constant(model: Mapping[str, Any], name: str, default: float | None = None) -> float:
    return json_fields.number(model, name, CONFIGURATION, float, default)


def _ve(model: Mapping[str, Any], continuous: bool, sigmas: np.ndarray | None) -> dict[str, Any]:
    if not continuous:
        raise ValueError(
            "training.continuous is false with a VE process, whose network is told a number of a "
            "noise level; only continuous VE networks are supported"
        )
    names = ("sigma_min", "sigma_max")
    ends = [None if model.get(n) is None else _constant(model, n) for n in names]
    if sigmas is not None and sigmas.size:
        found = [float(sigmas[-1]), float(sigmas[0])]
        for name, told, stored in zip(names, ends, found, strict=True):
            if told is not None and not math.isclose(told, stored, rel_tol=1e-5):
                raise ValueError(f"the configuration has {name} {told:g}, the weights {stored:.6g}")
        ends = found if None in ends else ends
    low, high = ends
    if low is None or high is None or not 0 < low < high:
        raise ValueError("neither configuration nor weights have the noise levels sigma_min, _max")
    return {
        "state": "ve",
        "output": "score_ve",
        "time": {"kind": "sigma"},
        "sigma_min": float(low),
        "sigma_max": float(high),
    }
