r"""LEDITS++ (Brack et al. 2024, arXiv 2311.16711): semantic guidance within implicit masks.

On the inversion of edit_friendly.py with the negative text alone, each step adds to ε = ε(x, ∅) a
guidance for every concept c, with the sign +1 for a concept that is added, -1 for one removed:

    ψ_c = ± s (ε(x, c) - ε),   ε̂ = ε + Σ_c M_c ψ_c,   M_c = M¹_c M²_c                          (1)
    M¹ = 1 where the attention to the concept's words is in its quantile λ or above             (2)
    M² = 1 where Σ over channels of |ψ_c| is in its quantile λ or above                         (3)

The attention is the mean over heads and layers on maps of at most 16² positions, summed over the
words, and smoothed; above level 800, where differences of noise tell no place yet, M² is left out.
This is what the authors' code does (diffusers' pipeline); it also has a solver of second order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import attention_masks, editors

LATE = 800  # the highest index t at which differences of noise make a mask
SIGMA = 0.5  # of the 3x3 smoothing; the code's weights are exp(-(d/2σ)²)


class Concept(NamedTuple):
    """What is added or removed.

    Attributes:
      text: `[B, M, D]`, hidden states of the concept's words.
      words: bool `[B, M]`, True at its words' tokens.
      sign: 1 or -1.
    """

    text: jax.Array
    words: jax.Array
    sign: int


def smoothed(maps: jax.Array) -> jax.Array:
    """3x3 Gaussian smoothing of maps `[B, h, w]`, mirrored at the borders."""
    d = np.array([-1.0, 0.0, 1.0])
    kernel = np.exp(-((d / (2 * SIGMA)) ** 2))
    kernel = kernel / kernel.sum()
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = sum(k * padded[:, n : n + maps.shape[1]] for n, k in enumerate(kernel))
    return sum(k * rows[:, :, n : n + maps.shape[2]] for n, k in enumerate(kernel))


def above(values: jax.Array, quantile) -> jax.Array:
    """Where each image's values `[B, h, w]` are at or above their quantile: bool `[B, h, w]`."""
    limit = jnp.quantile(values.reshape(len(values), -1), quantile, axis=1)
    return values >= limit[:, None, None]


def attention_mask(maps: Mapping, words: jax.Array, side: tuple[int, int], quantile) -> jax.Array:
    """M¹ of equation (2), bool `[B, h, w]`.

    Args:
      maps: cross-attention maps by layer, `[B, heads, L, M]`.
      words: bool `[B, M]`.
      side: h and w of the latents.
      quantile: λ.
    """
    attention = attention_masks.of_layers(maps, words.astype(jnp.float32), side)
    # A concept without words, which an image may have, changes nothing.
    mask = above(smoothed(attention), quantile) & words.any(-1)[:, None, None]
    return attention_masks.stretched(mask, side)


def guided_eps(
    unet: Callable, x: jax.Array, t, negative: jax.Array, concepts: list[Concept], scale, quantile
) -> tuple[jax.Array, jax.Array]:
    """ε̂ of equation (1), and the masks M_c, bool `[concepts, B, h, w]`; one network call.

    Args:
      unet: `(x, t, context, **kwargs)`.
      x: `[B, h, w, C]`.
      t: index of the level.
      negative: `[B, M, D]`, the text without the concepts.
      concepts: what changes.
      scale: s.
      quantile: λ of both masks.
    """
    context = jnp.concatenate([negative, *(c.text for c in concepts)])
    out, maps, _ = editors.observe(unet, jnp.concatenate([x] * (1 + len(concepts))), t, context)
    eps, *others = jnp.split(out, 1 + len(concepts))
    total, masks = eps, []
    for n, (concept, other) in enumerate(zip(concepts, others, strict=True), 1):
        own = {layer: m[n * len(x) : (n + 1) * len(x)] for layer, m in maps.items()}
        first = attention_mask(own, concept.words, x.shape[1:3], quantile)
        difference = other - eps
        second = above(jnp.abs(difference).sum(-1), quantile) | (t > LATE)
        masks.append(first & second)
        total += jnp.where(masks[-1][..., None], concept.sign * scale * difference, 0.0)
    return total, jnp.stack(masks)
