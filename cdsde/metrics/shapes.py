r"""Metrics of drawings in black on white, such as written characters.

    overlap    |A ∩ B| / |A ∪ B| of the dark pixels (darker than half) of two pictures
    legible    whether, of all true results, the right one is the nearest

Likeness in L2 alone forgives strokes that are missing, and a blur; these two do not.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BLUR = 1.0  # σ in pixels: a stroke that is one pixel off is not another stroke


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of the dark pixels of images `[B, H, W, 3]` in [0, 1]: `[B]`.

    Two pictures without dark pixels have the value 1.
    """
    a, b = (np.asarray(x).mean(axis=-1) < 0.5 for x in (a, b))
    union = (a | b).sum(axis=(1, 2))
    return np.where(union, (a & b).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)


def blurred(images: np.ndarray) -> np.ndarray:
    """Features for `legible`: blurred brightness, `[N, H, W, 3]` in [0, 1] -> `[N, H W]`."""
    grey = np.asarray(images, np.float32).mean(axis=-1)
    return ndimage.gaussian_filter(grey, (0, BLUR, BLUR)).reshape(len(grey), -1)


def legible(results: np.ndarray, truths: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether the nearest of all true results is the right one: 0 or 1, `[N]`.

    Args:
      results: features of the results, `[N, D]`.
      truths: features of all true results, `[M, D]`.
      right: position of each result's own truth, `[N]`.
    """
    distances = (
        np.square(truths).sum(axis=1)[None, :] - 2 * np.asarray(results) @ np.asarray(truths).T
    )
    return (distances.argmin(axis=1) == np.asarray(right)).astype(np.float64)
