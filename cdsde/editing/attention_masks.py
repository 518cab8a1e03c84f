"""Masks from cross-attention to words: of an object, over an inversion; of one step, by layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import ddim, editors

SIDE = 16  # the averaged attention maps are the largest within this side
THRESHOLD = 0.3  # a map in [0, 1] exceeds it on the object


def of_words(
    unet: Callable, z: jax.Array, ladder: ddim.Ladder, text: jax.Array, words: jax.Array
) -> jax.Array:
    """Attention of each position to the words, `[B, s, s]` in [0, 1]; s is at most `SIDE`.

    The maps are averaged over heads, layers and steps, then stretched to [0, 1] per image.

    Args:
      unet: `(x, t, context, **kwargs)`.
      z: `[B, h, w, 4]`, clean latents.
      ladder: the moves of the inversion.
      text: `[B, 77, D]`, hidden states of the captions.
      words: bool `[B, 77]`, True at the tokens of the words.
    """
    weight = words / words.sum(-1, keepdims=True)

    def body(carry, row):
        x, total = carry
        t, start, end = row
        eps, maps, _ = editors.observe(unet, x, t, text)
        total = total + of_layers(maps, weight, z.shape[1:3])
        return (ddim.move(x, eps, start, end), total), None

    initial = z, zeros(len(z), z.shape[1:3])
    (_, total), _ = jax.lax.scan(body, initial, ddim.Ladder(*map(jnp.asarray, ladder)))
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    return (total - low) / jnp.maximum(high - low, 1e-12)


def of_layers(maps: Mapping, weight: jax.Array, side: tuple[int, ...]) -> jax.Array:
    """Attention by positions `[B, s, s]`: the mean over heads, and over the layers of one size.

    Args:
      maps: cross-attention maps by layer, `[B, heads, L, M]`; the largest within `SIDE` count.
      weight: `[B, M]`, weights of the tokens.
      side: rows and columns of the latents.

    Raises:
      ValueError: no map has that size.
    """
    height, width = map(_side, side)
    chosen = [m for m in maps.values() if m.shape[2] == height * width]
    if not chosen:
        raise ValueError(
            f"the model has no cross-attention on {height}x{width} positions, where latents of "
            f"{side[0]}x{side[1]} tell the place of a word; take another config.data.image_size or "
            "model, or do without masks of words"
        )
    attention = [jnp.einsum("bhlm,bm->bl", m, weight) / m.shape[1] for m in chosen]
    return sum(attention).reshape(-1, height, width) / len(attention)


def zeros(count: int, side: tuple[int, ...]) -> jax.Array:
    """No attention yet, for `of_layers` to be added: `[count, s, s]`."""
    return jnp.zeros((count, *map(_side, side)))


def _side(latent: int) -> int:
    """The side of the attention maps; each level of the U-Net halves the latents' side."""
    side = latent // 2
    while side > SIDE:
        side = side // 2
    return side


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Object masks, bool `[B, size, size]`: maps `[B, s, s]` after threshold and enlargement."""
    return stretched(np.asarray(maps) > THRESHOLD, (size, size))


def stretched(masks, side: tuple[int, ...]):
    """Masks `[B, s, s]` at another size, `[B, *side]`: nearest neighbours, as `F.interpolate`."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(side, masks.shape[1:], strict=True))
    return masks[:, rows][:, :, columns]
