"""A network of small images as the start of one that sees patches of larger images.

With images and patches k times as large, the U-Net works on the same grid of positions. Its first
layer takes the mean of k² pixels for one, and its last layer says the same for all of them, so that
on an image whose pixels are repeated k x k times the network says what the small one says of the
small image, repeated. Fourier features that it did not have begin without a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.weights import knowledge

STAGES = ("score", config_lib.SOURCE_SCORE, "encoder", "classifier")


def smaller(saved: Mapping, config: ConfigDict, stage: str) -> ConfigDict | None:
    """The config of the smaller network to which the weights belong; None if there is none.

    Args:
      saved: the `architecture` beside the weights.
      config: the task with the larger network.
      stage: the network.
    """
    if stage not in STAGES:
        return None
    group, found = config_lib.network_group(stage), saved["network"]
    size, patch = saved.get("data.image_size"), found.get("patch_size")
    if not (isinstance(size, int) and isinstance(patch, int) and 0 < size < config.data.image_size):
        return None
    if config.data.image_size % size or patch * config.data.image_size != (
        config[group].patch_size * size
    ):
        return None
    small = config.copy_and_resolve_references()
    small.data.image_size = size
    small[group].patch_size = patch
    if "fourier" in config[group] and not found.get("fourier"):
        small[group].fourier = ()
    return None if knowledge.differences(saved, small, stage) else small


def enlarge(params, shapes, small: ConfigDict, config: ConfigDict, stage: str) -> dict:
    """Parameters of the network of `config`, from those of the network of `small`.

    Args:
      params: those of the small network, arrays.
      shapes: the parameter tree of the larger one, of leaves with a shape.
      small, config: the tasks of the two.
      stage: the network.
    """
    group = config_lib.network_group(stage)
    patch = small[group].patch_size
    times = config[group].patch_size // patch

    def leaf(value: np.ndarray, wanted) -> np.ndarray:
        if value.shape == wanted.shape:
            return value
        last = value.shape[-1] != wanted.shape[-1]
        axis = -1 if last else -2  # of the pixels of a patch
        parts = np.moveaxis(value if last else value / times**2, axis, 0)
        parts = parts.reshape(patch, patch, -1, *parts.shape[1:])
        for side in (0, 1):
            parts = np.repeat(parts, times, side)
        new = wanted.shape[axis] // (patch * times) ** 2 - parts.shape[2]  # Fourier features
        parts = np.pad(parts, [(0, 0), (0, 0), (0, new)] + [(0, 0)] * (parts.ndim - 3))
        return np.moveaxis(parts.reshape(-1, *parts.shape[3:]), 0, axis)

    return jax.tree.map(leaf, params, shapes)
