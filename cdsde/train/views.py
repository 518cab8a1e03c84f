r"""Second views of an image for the contrastive encoder: what two views share, the encoder keeps.

lowpass   φ(x), the paper's: layout and colours stay                     (arXiv 2510.03821)
style     tanh(k (G x - b)): structure stays, the look of strokes and surfaces is random.
          G blurs and moves along each axis by random amounts; a threshold b of a blurred
          drawing makes its strokes thicker or thinner, along each axis by itself; k is the
          contrast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLUR = (0.4, 2.0)  # σ of G in pixels
MOVE = 1.0  # largest movement in pixels
THRESHOLD = 0.6  # largest |b|
CONTRAST = (1.0, 8.0)  # k


def style(x: jax.Array, key: jax.Array) -> jax.Array:
    """A view of each image in a random style, `[B, H, W, C]` in [-1, 1], of the same shape."""
    keys = jax.random.split(key, 4)
    b = x.shape[0]
    rows = _blur(keys[0], b, x.shape[1])
    columns = _blur(keys[1], b, x.shape[2])
    x = jnp.einsum("bij,bjwc->biwc", rows, x)
    x = jnp.einsum("bij,bhjc->bhic", columns, x)
    low, high = (jnp.log(k) for k in CONTRAST)
    contrast = jnp.exp(jax.random.uniform(keys[2], (b, 1, 1, 1), minval=low, maxval=high))
    threshold = jax.random.uniform(keys[3], (b, 1, 1, 1), minval=-THRESHOLD, maxval=THRESHOLD)
    return jnp.tanh(contrast * (x - threshold))


def _blur(key, count: int, size: int) -> jax.Array:
    """Matrices `[count, size, size]` that blur and move along one axis; borders are repeated."""
    keys = jax.random.split(key)
    sigma = jax.random.uniform(keys[0], (count, 1, 1), minval=BLUR[0], maxval=BLUR[1])
    move = jax.random.uniform(keys[1], (count, 1, 1), minval=-MOVE, maxval=MOVE)
    position = jnp.arange(size, dtype=jnp.float32)
    distance = position[None, :, None] - position[None, None, :] - move
    weights = jnp.exp(-0.5 * jnp.square(distance / sigma))
    return weights / weights.sum(axis=-1, keepdims=True)
