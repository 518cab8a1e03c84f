"""What costs nothing and translates nothing: lines to read every method against.

Each floor makes a picture for a source image without a network. They show what a metric can be had
for: retrieval is as real as real pictures are, the unchanged source is perfectly faithful, and in
the target's colours it is nearer to the target without a line of it being drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cdsde.data import to_uint8
from cdsde.diffusion import histograms

IDENTITY, COLOURS, RETRIEVAL = "source unchanged", "source in the target's colours", "retrieval"
MEAN, TRUTH = "mean image", "true target"


def pictures(
    name: str,
    source: Callable,
    truth: Callable | None,
    real: np.ndarray,
    table: np.ndarray | None = None,
) -> Callable:
    """`number -> uint8 [H, W, 3]` of floor `name`.

    Args:
      name: a floor.
      source: `number -> uint8 [H, W, 3]` of the source images.
      truth: the same of their true targets, or None.
      real: uint8 `[N, H, W, 3]`, the target's training images.
      table: `[3, 256]`, the target's value for each of the source's (`colours.table`).
    """
    if name == IDENTITY:
        return source
    if name == COLOURS:
        return lambda j: to_uint8(np.asarray(histograms.apply(table, source(j))))
    if name == TRUTH:
        return truth
    if name == MEAN:
        mean = np.round(real.mean(axis=0)).astype(np.uint8)
        return lambda j: mean
    if name == RETRIEVAL:
        small = coarse(real).reshape(len(real), -1)

        def nearest(j):
            wanted = coarse(source(j)[None]).reshape(-1)
            return real[np.argmin(np.sum((small - wanted) ** 2, axis=1))]

        return nearest
    raise ValueError(f"there is no floor '{name}'")


def coarse(images: np.ndarray, side: int = 8) -> np.ndarray:
    """Means of uint8 `[N, H, W, 3]` over a grid of side x side, float64 `[N, side, side, 3]`."""
    n, h, w, c = images.shape
    cut = images[:, : h // side * side, : w // side * side].astype(np.float64)
    return cut.reshape(n, side, h // side, side, w // side, c).mean(axis=(2, 4))


def names(paired: bool) -> tuple[str, ...]:
    """The floors that a task has."""
    return (IDENTITY, COLOURS, RETRIEVAL, MEAN) + ((TRUTH,) if paired else ())
