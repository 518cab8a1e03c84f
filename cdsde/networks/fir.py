"""Resampling by a factor of 2 with a short separable filter (FIR), as NCSN++ and EDM do it.

The filter is that of StyleGAN2 (Karras et al. 2020, upfirdn2d); with (1, 1) it is the mean of four
pixels and the repetition of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax


def kernel_of(taps: Sequence[float]) -> np.ndarray:
    """The filter `[L, L]` with the sum 1, of `taps` `[L]`."""
    taps = np.asarray(taps, np.float64)
    kernel = np.outer(taps, taps)
    return (kernel / kernel.sum()).astype(np.float32)


def filtered(x: jax.Array, taps: Sequence[float], pad: tuple[int, int], stride: int = 1):
    """Each channel of `[B, H, W, C]` filtered, after `pad` rows (and columns) of zeros."""
    return _depthwise(x, kernel_of(taps), pad, stride=stride)


def downsample(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H/2, W/2, C]`."""
    side = (len(taps) - 1) // 2
    return _depthwise(x, kernel_of(taps), (side, side), stride=2)


def upsample(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """`[B, H, W, C]` -> `[B, 2H, 2W, C]`: a zero after every pixel, then the filter times 4."""
    length = len(taps)
    pad = (length // 2, (length - 1) // 2)
    return _depthwise(x, 4 * kernel_of(taps), pad, dilation=2)


def _depthwise(x, kernel, pad, stride: int = 1, dilation: int = 1):
    channels = x.shape[-1]
    if dilation > 1:  # lax leaves out the zero behind the last pixel
        pad = (pad[0], pad[1] + dilation - 1)
    # lax correlates; the filter is turned round, so that one without symmetry works too.
    kernel = np.broadcast_to(kernel[::-1, ::-1, None, None], (*kernel.shape, 1, channels))
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=(pad, pad),
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
