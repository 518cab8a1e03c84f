"""cdsde from Python: load a config, translate pictures.

import cdsde
config = cdsde.load_config("twemoji2fluent", {"sample.steps": 50})
result = cdsde.translate(config, ["smile.png", "heart.png"])      # uint8 [2, H, W, 3]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.config import checks, command_line
from cdsde.data import decode, image_id, inputs
from cdsde.runtime.padding import pad
from cdsde.translation.compiled import Sampler, load_sampler


def load_config(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of a file, with overrides by dotted key, checked.

    Args:
      path: a file of `configs/`, or its name alone: "cat2dog".
      overrides: such as `{"method": "egsde", "sample.steps": 50}`.

    Raises:
      ValueError: an unknown key (names the nearest), a value of the wrong type or out of range.
    """
    try:
        config = command_line.load(os.fspath(path))
        leaves = config_lib.key_paths(config)
        for key, value in (overrides or {}).items():
            command_line.check_key(leaves, key)
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            try:
                config.update_from_flattened_dict({key: value})
            except TypeError as error:
                raise ValueError(command_line.wrong_type(config, key, value)) from error
    except command_line.UserError as error:
        raise ValueError(str(error)) from error
    checks.validate(config)
    return config


def translate(
    config: ConfigDict,
    images: Sequence,
    *,
    names: Sequence[str] | None = None,
    workdir: str | Path = ".",
    sampler: Sampler | None = None,
) -> np.ndarray:
    """Translate pictures by `config.method`.

    Args:
      config: from `load_config`.
      images: paths, encoded bytes, or uint8 arrays `[H, W, 3]` of any size; or uint8
        `[B, H, W, 3]`.
      names: what each image's noise belongs to; default: a path's file name, else its position.
      workdir: where checkpoints are looked for before `config.weights`.
      sampler: a compiled one from `load_sampler`, to be used again; default: a new one.

    Returns:
      uint8 `[B, S, S, 3]`, S = `config.data.image_size`, in the order given.

    Raises:
      ValueError: an image that cannot be read, or no weights.
    """
    if isinstance(images, str | bytes | Path):
        raise ValueError("translate takes a sequence of images; put the one you have in a list")
    images = list(images)
    if not images:
        raise ValueError("translate got no image: give at least one")
    if names is None:
        names = [
            Path(x).name if isinstance(x, str | Path) else str(j) for j, x in enumerate(images)
        ]
    if len(names) != len(images):
        raise ValueError(
            f"translate got {len(images)} images and {len(names)} names: give one an image"
        )
    pixels = [
        x if isinstance(x, np.ndarray) else decode(x, n) for x, n in zip(images, names, strict=True)
    ]
    batch = np.stack([inputs.reading(config)(x) for x in pixels])
    ids = np.array([image_id(str(n)) for n in names], np.uint32)
    if sampler is None:
        sampler, _ = load_sampler(config, workdir)
    count, step = len(batch), min(config.sample.batch_size, len(batch))
    parts = [slice(at, at + step) for at in range(0, count, step)]
    return np.concatenate([sampler(*pad((batch[p], ids[p]), step)) for p in parts])[:count]
