"""The Python interface: load a config, translate images.

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
from cdsde.config import checks, command_line, derived
from cdsde.data import decode, image_id, inputs
from cdsde.runtime.padding import pad
from cdsde.translation import tiles
from cdsde.translation.compiled import Sampler, load_sampler


def load_config(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Loads the config of a file, applies overrides and checks the result.

    Args:
      path: a file in `configs/`, or its name alone: "cat2dog".
      overrides: values by dotted key, such as `{"method": "egsde", "sample.steps": 50}`; None
        unsets a key.

    Raises:
      ValueError: a key is unknown (the message names the nearest), or a value has the wrong type or
        is out of range.
    """
    try:
        config = command_line.load(os.fspath(path))
        before = config.method
        leaves = config_lib.key_paths(config)
        for key, value in (overrides or {}).items():
            command_line.check_key(leaves, key)
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            command_line.set_key(config, key, value)
    except command_line.UserError as error:
        raise ValueError(str(error)) from error
    config_lib.adopt_sampling(config, overrides or {}, before)
    checks.validate(config)
    derived.expand_home(config)
    return config


def translate(
    config: ConfigDict,
    images: Sequence,
    *,
    names: Sequence[str] | None = None,
    workdir: str | Path = ".",
    sampler: Sampler | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Translates images by `config.method`.

    Args:
      config: the result of `load_config`.
      images: paths, encoded bytes, or uint8 arrays `[H, W, 3]` of any size; or one uint8 array
        `[B, H, W, 3]`.
      names: one name per image, which determines its noise; default: the file name of a path, else
        the position.
      workdir: folder whose checkpoints have priority over `config.weights`.
      sampler: a compiled sampler from `load_sampler`, for repeated calls, which takes over the
        config's levels, weights and seed; default: a new one.

    Returns:
      uint8 `[B, S, S, 3]`, S = `config.data.image_size`, in the order of `images`. With
      `data.fit=pad` or `sample.keep_size`, a list of uint8 `[H, W, 3]` of the images' own aspects.

    Raises:
      ValueError: an image cannot be read, a network has no weights, or a key of the config was set
        to a value that is not allowed.
    """
    checks.validate(config)
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
    read, ids = inputs.reading(config), np.array([image_id(str(n)) for n in names], np.uint32)
    if sampler is None:
        sampler, _ = load_sampler(config, workdir)
    else:
        sampler.update(config)
    config = sampler.config
    if config.sample.keep_size:
        whole = tiles.Whole(sampler, config)
        return [whole(x, i) for x, i in zip(pixels, ids, strict=True)]
    batch = np.stack([read(x) for x in pixels])
    count, step = len(batch), min(config.sample.batch_size, len(batch))
    parts = [slice(start, start + step) for start in range(0, count, step)]
    results = np.concatenate([sampler(*pad((batch[p], ids[p]), step)) for p in parts])[:count]
    if read.fit != "pad":
        return results
    return [y[read.inside(*x.shape[:2])] for x, y in zip(pixels, results, strict=True)]
