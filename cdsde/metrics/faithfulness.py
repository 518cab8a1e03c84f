r"""Faithfulness metrics, with the conventions of EGSDE's published evaluation.

Images are `[B, H, W, 3]` with values in [0, 1]; every metric returns one value per image, `[B]`.

    L2    √ Σ (a - b)²                                  Euclidean distance over all values
    MSE   mean (a - b)²
    PSNR  10 log10(1 / (MSE + 1e-10))                   100 for identical images
    SSIM  window 11, Gaussian σ = 1.5, no padding, K = (0.01, 0.03), mean over map and channels
"""

from __future__ import annotations

from collections.abc import Callable

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np


def mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared error, float64 `[B]`."""
    return np.mean((_double(a) - _double(b)) ** 2, axis=(1, 2, 3))


def l2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance, float64 `[B]`."""
    return np.sqrt(np.sum((_double(a) - _double(b)) ** 2, axis=(1, 2, 3)))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, float64 `[B]`."""
    return 10 * np.log10(1 / (mse(a, b) + 1e-10))


@jax.jit
def _ssim(a, b):
    return dm_pix.ssim(a, b)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity, float64 `[B]`, computed in float32 as in the published evaluation.

    Raises:
      ValueError: a side is shorter than the window of 11 pixels.
    """
    if min(np.shape(a)[1:3]) < 11:
        raise ValueError(f"SSIM needs sides of at least 11 pixels, not {np.shape(a)[1:3]}")
    return np.asarray(_ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), np.float64)


def bootstrap_interval(
    values: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap percentile interval `(low, high)` of the mean of `values` `[N]`."""
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    tail = 50 * (1 - level)
    low, high = np.percentile(values[draws].mean(axis=1), (tail, 100 - tail))
    return float(low), float(high)


def _double(a: np.ndarray) -> np.ndarray:
    return np.asarray(a, np.float64)


METRICS: dict[str, Callable] = {"L2": l2, "MSE": mse, "PSNR": psnr, "SSIM": ssim}
