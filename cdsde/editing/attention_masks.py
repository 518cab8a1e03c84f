"""Where in a picture a word is: the source's cross-attention to it, over the inversion."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import editors, ladders

SIDE = 16  # of the maps that are averaged; of small latents half the side
THRESHOLD = 0.3  # of a map stretched to [0, 1]: above it is the object


def of_words(
    unet: Callable, z: jax.Array, ladder: ladders.Ladder, text: jax.Array, words: jax.Array
) -> jax.Array:
    """How much each place looks at the words, `[B, s, s]` in [0, 1]; s at most `SIDE`.

    Args:
      unet: `(x, t, context, **kwargs)`.
      z: `[B, h, w, 4]`, clean latents.
      ladder: upwards.
      text: `[B, 77, D]`, hidden states of the captions.
      words: bool `[B, 77]`.
    """
    height, width = z.shape[1:3]
    side = (min(SIDE, height // 2), min(SIDE, width // 2))
    weight = words / words.sum(-1, keepdims=True)

    def body(carry, row):
        x, total = carry
        t, start, end = row
        eps, maps, _ = editors.observe(unet, x, t, text)
        chosen = [m for m in maps.values() if m.shape[2] == side[0] * side[1]]
        looked = [jnp.einsum("bhlm,bm->bl", m, weight) / m.shape[1] for m in chosen]
        total = total + sum(looked).reshape(-1, *side) / len(looked)
        return (ladders.move(x, eps, start, end), total), None

    begin = (z, jnp.zeros((len(z), *side)))
    (_, total), _ = jax.lax.scan(body, begin, ladders.Ladder(*map(jnp.asarray, ladder)))
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    return (total - low) / jnp.maximum(high - low, 1e-12)


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps `[B, s, s]` → object masks bool `[B, size, size]`, nearest."""
    masks = np.asarray(maps) > THRESHOLD
    at = np.arange(size) * masks.shape[1] // size
    return masks[:, at][:, :, at]
