r"""Histogram specification: matches the channel histograms of an image to those of a domain.

Map each value to the target value of equal cumulative frequency (quantile matching),

    v' = G_t⁻¹(G_s(v)),  G(v) = P(pixel < v) + P(pixel = v)/2                                   (1)

for each channel separately, from unpaired images of a source and a target domain. No network is
involved, so its realism score is a baseline that guidance has to beat.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (3, 256)


def table(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Lookup table of equation (1), float32 `[3, 256]` in 0 … 255: new value by channel and value.

    Args:
      source, target: uint8 `[N, H, W, 3]`. Values that no source pixel has are interpolated.
    """
    values = np.arange(256)

    def cumulative(images, channel):
        count = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        present = count > 0
        return (np.cumsum(count) - count / 2)[present], values[present]

    rows = []
    for channel in range(3):
        share, value = cumulative(source, channel)
        mapped = np.interp(share, *cumulative(target, channel))
        rows.append(np.interp(values, value, mapped))
    return np.asarray(rows, np.float32)


def apply(table: jax.Array, images: jax.Array) -> jax.Array:
    """Looks up each channel in the table: uint8 `[B, H, W, 3]` → float32 in [-1, 1]."""
    looked_up = [table[channel][images[..., channel]] for channel in range(3)]
    return jnp.stack(looked_up, axis=-1) / 127.5 - 1
