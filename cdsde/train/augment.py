"""Random shift, zoom, rotation and colours of training images, on the device.

Against overfitting on small sets (Karras et al. 2020 use the same family). The border is
continued, which is invisible on plain backgrounds. Nothing here leaks into sampling when amounts
stay small; all amounts 0 is the identity and costs nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def colour(key, images, strength: float = 0.0):
    """Each image's colours by a random affine map of its own, kept in [-1, 1].

    Args:
      key: typed key.
      images: `[B, H, W, 3]` in [-1, 1].
      strength: standard deviation of the map's numbers about the identity's; 0 is the identity.

    Returns:
      `[B, H, W, 3]`, same dtype.
    """
    if not strength:
        return images
    mix, shift = jax.random.split(key)
    b = images.shape[0]
    matrix = jnp.eye(3) + strength * jax.random.normal(mix, (b, 3, 3))
    offset = strength * jax.random.normal(shift, (b, 1, 1, 3))
    moved = jnp.einsum("bhwc,bcd->bhwd", images, matrix) + offset
    return jnp.clip(moved, -1.0, 1.0).astype(images.dtype)


def affine(key, images, shift: float = 0.0, scale: float = 0.0, rotate: float = 0.0):
    """Each image moved by its own random amounts, bilinear, border continued.

    Args:
      key: typed key.
      images: `[B, H, W, C]` float.
      shift: up to this share of the side along each axis.
      scale: zoom factor within 1 ± scale.
      rotate: up to so many degrees either way.

    Returns:
      `[B, H, W, C]`, same dtype.
    """
    if not (shift or scale or rotate):
        return images
    b, h, w, _ = images.shape
    u = jax.random.uniform(key, (b, 4), minval=-1.0, maxval=1.0)
    offset = u[:, :2] * shift * jnp.array([[h, w]])
    zoom = 1.0 / (1.0 + u[:, 2] * scale)
    angle = jnp.deg2rad(u[:, 3] * rotate)
    centre = jnp.array([[(h - 1) / 2, (w - 1) / 2]])
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    grid = jnp.stack([rows, columns]).reshape(2, -1).astype(jnp.float32)  # [2, HW]
    cos, sin = jnp.cos(angle) * zoom, jnp.sin(angle) * zoom
    matrix = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)  # [B, 2, 2]

    def move(image, matrix, offset):
        at = matrix @ (grid - centre.T) + (centre + offset[None]).T
        at = at.reshape(2, h, w)
        return jax.vmap(
            lambda plane: map_coordinates(plane, list(at), order=1, mode="nearest"), -1, -1
        )(image)

    return jax.vmap(move)(images, matrix, offset).astype(images.dtype)
