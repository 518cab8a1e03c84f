"""Random shifts of training images, on the device, against overfitting on small data sets.

The border is repeated, which is invisible on plain backgrounds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def shift(key, images: jax.Array, amount: float) -> jax.Array:
    """Shift each image by its own random offsets, bilinear; the border is repeated.

    Args:
      key: typed key.
      images: `[B, H, W, C]` float.
      amount: largest offset as a share of the side, along each axis; 0 returns the images.

    Returns:
      `[B, H, W, C]`, same dtype.
    """
    if not amount:
        return images
    b, h, w, _ = images.shape
    offsets = jax.random.uniform(key, (b, 2), minval=-1.0, maxval=1.0)
    offsets = offsets * amount * jnp.array([[h, w]])
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")

    def move(image, offset):
        positions = [rows + offset[0], columns + offset[1]]
        one = lambda plane: map_coordinates(plane, positions, order=1, mode="nearest")  # noqa: E731
        return jax.vmap(one, -1, -1)(image)

    return jax.vmap(move)(images, offsets).astype(images.dtype)
