"""Floors, and rows that cheat: baselines to compare every method with.

Each floor maps a source image to a picture and shows the score that a metric gives without any
translation: retrieval is as realistic as real images, the unchanged source is perfectly faithful,
and the source in the target's colours is closer to the target with its content unchanged. A network
that is trained on true pairs cheats.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cdsde.benchmark import paired
from cdsde.data import to_uint8
from cdsde.diffusion import histograms

IDENTITY, COLOURS, RETRIEVAL = "source unchanged", "source in the target's colours", "retrieval"
MEAN, TRUTH = "mean image", "true target"
PAIRED, SHARP = "trained on true pairs (cheats)", "the same, black or white"
ALL = (IDENTITY, COLOURS, RETRIEVAL, MEAN, PAIRED, SHARP, TRUTH)


def pictures(
    name: str,
    source: Callable,
    truth: Callable | None,
    real: np.ndarray,
    table: np.ndarray | None = None,
    taught: Callable | None = None,
) -> Callable:
    """The function `position -> uint8 [H, W, 3]` of a floor.

    Args:
      name: a floor, one of `ALL`.
      source: `position -> uint8 [H, W, 3]` of the source images.
      truth: the same for their true targets, or None.
      real: uint8 `[N, H, W, 3]`, the target's training images.
      table: `histograms.table`, float32 `[3, 256]`; for `COLOURS`.
      taught: `paired.trained`, for `PAIRED` and `SHARP`.

    Raises:
      ValueError: there is no such floor.
    """
    if name == IDENTITY:
        return source
    if name == COLOURS:
        return lambda j: to_uint8(np.asarray(histograms.apply(table, source(j))))
    if name == TRUTH:
        return truth
    if name == PAIRED:
        return lambda j: taught(source(j))
    if name == SHARP:
        return lambda j: paired.sharp(taught(source(j)))
    if name == MEAN:
        mean = np.round(real.mean(axis=0)).astype(np.uint8)
        return lambda j: mean
    if name == RETRIEVAL:
        small = coarse(real).reshape(len(real), -1)

        def nearest(j):
            query = coarse(source(j)[None]).reshape(-1)
            return real[np.argmin(np.sum((small - query) ** 2, axis=1))]

        return nearest
    raise ValueError(f"there is no floor '{name}'")


def coarse(images: np.ndarray, side: int = 8) -> np.ndarray:
    """Means of uint8 `[N, H, W, 3]` over a side × side grid, float64 `[N, side, side, 3]`."""
    n, h, w, c = images.shape
    cut = images[:, : h // side * side, : w // side * side].astype(np.float64)
    return cut.reshape(n, side, h // side, side, w // side, c).mean(axis=(2, 4))


def names(has_truth: bool, learns: bool) -> tuple[str, ...]:
    """The floors of a task.

    Args:
      has_truth: whether there are true targets.
      learns: whether a network may learn from those of `val`: of a task in black and white, and
        for another split.
    """
    cheats = (PAIRED, SHARP) if has_truth and learns else ()
    return (IDENTITY, COLOURS, RETRIEVAL, MEAN, *cheats, *((TRUTH,) if has_truth else ()))
