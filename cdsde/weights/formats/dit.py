"""Opens checkpoints of DiT (Peebles and Xie 2023).

The trainer saves `{"model", "ema", "opt", "args"}`, of which the average is read; the published
files are the bare state dict. Shapes tell the architecture but for the number of heads, which the
trainer's `args.model` names, or `NAME.config.json` with the constructor's arguments, or a published
size.
Source: github.com/facebookresearch/DiT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import schedules
from cdsde.networks.dit import DiT
from cdsde.runtime import fields as json_fields
from cdsde.weights.formats import beside
from cdsde.weights.formats.opened import Opened
from cdsde.weights.torch import pickle_reader, plain_objects

# Heads of the published sizes: of a name, and of a depth and width.
HEADS = {"XL": 16, "L": 16, "B": 12, "S": 6}
SIZES = {(28, 1152): 16, (24, 1024): 16, (12, 768): 12, (12, 384): 6}
# Arguments of trainers of other networks with DiT's names: SiT's, of flow matching.
FLOW = ("path_type", "prediction")
CONSTRUCTOR = (
    "input_size patch_size in_channels hidden_size depth num_heads mlp_ratio class_dropout_prob "
    "num_classes learn_sigma"
).split()


def read(path: str | Path, config: Mapping[str, Any] | None = None) -> Opened:
    """A checkpoint of DiT: the trainer's, with its averaged weights, or a bare state dict.

    Args:
      path: a `.pt`.
      config: `{"constructor": arguments of the class}`; None is the one in `NAME.config.json`,
        which need not exist.

    Returns:
      The network. Published ones work on latents of SD-1.x's autoencoder, times 0.18215.

    Raises:
      ValueError: the file would execute code, is damaged, has no average, is one of SiT, does not
        tell the number of heads, or contradicts the configuration.
    """
    path = beside.file_of(path)
    config = beside.config_of(path, config)
    content = pickle_reader.load(path, plain_objects.RECORDS, _averaged)
    weights, arguments = content["weights"], content["arguments"]
    del content  # so that nothing but `weights` holds them
    try:
        _check_dit(path, arguments)
        classes = arguments.get("num_classes")
        fields = infer(weights, classes if isinstance(classes, int) else None)
        if config is not None:
            told = fields_of(config, beside.config_path(path))
            rows = {"rows": told["num_classes"] + told["null_class"]}
            found = {**fields, "rows": fields["num_classes"] + fields["null_class"]}
            del found["num_classes"], found["null_class"]
            beside.check_same({**told, **rows}, found, path)
            fields |= told
        else:
            fields["num_heads"] = _heads(arguments.get("model"), fields)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from None
    module = DiT(**fields)
    side, channels = fields["input_size"], fields["in_channels"]
    inputs = (jnp.zeros((1, side, side, channels)), jnp.ones(1), jnp.zeros(1, int))
    params = beside.fitted(module, inputs, weights, path)
    return Opened("DiT", fields, path_of(), params)


def path_of() -> dict[str, Any]:
    """How every published DiT sees a noisy image (or latent), for `diffusion.paths.Path`."""
    alpha_bar = np.cumprod(1 - schedules.exact_beta("linear"))
    time = {"kind": "levels", "alpha_bar": alpha_bar.tolist()}
    return {"state": "vp", "output": "eps", "time": time, "data": [-1, 1]}


def _check_dit(path: Path, arguments: Mapping[str, Any]) -> None:
    """Checks that nothing says another network with the names and shapes of DiT, such as SiT.

    Raises:
      ValueError: something does; the state dict alone could not tell.
    """
    model = str(arguments.get("model", path.stem))
    told = [f"{name} '{arguments[name]}'"[:80] for name in FLOW if name in arguments]
    if ("model" in arguments and not model.startswith("DiT")) or model.startswith("SiT"):
        told = [f"the model '{model[:40]}'", *told]
    if told:
        raise ValueError(
            f"it is no DiT but has {', '.join(told)}; networks of SiT and others that are trained "
            "on other noise than DDPM's are not supported, so name a checkpoint of DiT"
        )


def _averaged(content: Any) -> dict[str, Any]:
    """The weights, and the trainer's arguments."""
    content = content if isinstance(content, dict) else {}
    weights, arguments = content, {}
    if not {"ema", "model"}.isdisjoint(content):
        weights = content.get("ema")
        if not isinstance(weights, dict):
            raise pickle_reader.Unsuitable(
                "has no averaged weights ('ema'), which published results use: pass a checkpoint "
                "that has them, or a file of the state dict alone."
            )
        if isinstance(record := content.get("args"), plain_objects.Record):
            arguments = record.fields
    plain = [value for value in weights.values() if isinstance(value, pickle_reader.Tensor)]
    if not weights or len(plain) < len(weights):
        raise pickle_reader.Unsuitable(
            "is no checkpoint of DiT (a dict of tensors, or of model and ema): check the path."
        )
    return {"weights": weights, "arguments": arguments}


def infer(state_dict: Mapping[str, Any], num_classes: int | None = None) -> dict[str, Any]:
    """Constructor fields that shapes tell: all but the number of heads.

    Args:
      state_dict: published names to anything with a shape.
      num_classes: that of the training; None takes the last class for the null class.

    Raises:
      ValueError: they are not those of a DiT.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        found = tuple(state_dict[name].shape) if name in state_dict else ()
        if len(found) != ndim or not all(found):
            raise ValueError(f"it is no DiT: {name} has the shape {found} in place of {ndim} sizes")
        return found

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    _, tokens, _ = shape("pos_embed", 3)
    rows, _ = shape("y_embedder.embedding_table.weight", 2)
    hidden, _ = shape("blocks.0.mlp.fc1.weight", 2)
    out, _ = shape("final_layer.linear.weight", 2)
    numbers = {m[1] for name in state_dict if (m := re.match(r"blocks\.(\d{1,5})\.", str(name)))}
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"it is no DiT: {tokens} positions are not those of a square")
    null = rows == num_classes + 1 if num_classes is not None else rows > 1
    return {
        "input_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": len(numbers),
        "mlp_ratio": hidden / width,
        "num_classes": rows - null,
        "null_class": null,
        "learn_sigma": out == 2 * channels * patch * patch,
    }


def fields_of(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Constructor fields of a configuration.

    Raises:
      ValueError: it lacks a field, or has one that is unknown or no number.
    """
    told = beside.section(config, "constructor", where)
    json_fields.check(told, where, CONSTRUCTOR, {})
    defaults = {"class_dropout_prob": 0.1, "num_classes": 1000, "mlp_ratio": 4.0}
    fields: dict[str, Any] = {}
    for name in CONSTRUCTOR:
        if name in ("class_dropout_prob", "mlp_ratio"):
            fields[name] = json_fields.number(told, name, where, float, defaults[name])
        elif name != "learn_sigma":
            fields[name] = json_fields.number(told, name, where, int, defaults.get(name))
    learned = told.get("learn_sigma", True)
    if not isinstance(learned, bool):
        raise ValueError(f"{where} sets learn_sigma to {learned}; it must be true or false")
    null = fields.pop("class_dropout_prob") > 0
    return {**fields, "null_class": null, "learn_sigma": learned}


def _heads(name: Any, fields: Mapping[str, Any]) -> int:
    """The number of heads of a published size."""
    known = re.fullmatch(r"DiT-(XL|L|B|S)/\d+", str(name))
    if known:
        return HEADS[known[1]]
    size = (fields["depth"], fields["hidden_size"])
    if size not in SIZES:
        raise ValueError(
            f"its weights do not tell the number of heads, and {size[0]} blocks of width {size[1]} "
            "are no published size: write NAME.config.json beside it, such as "
            '{"constructor": {"num_heads": 4, ...}} with the arguments of the class'
        )
    return SIZES[size]
