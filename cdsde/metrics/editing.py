"""Metrics of edits by words: what the text asked for, and what was to stay.

CLIP score           ⟨image, text⟩ of CLIP's vectors of length 1; not times 100
structure distance   mean (S(a) - S(b))², S the cosines between the keys that DINO's last block
                     has of one picture (Tumanyan et al. 2022; pix2pix-zero's "Dist")
background           a picture without its object: both are multiplied by the mask's complement
                     before they are compared (PnPInversion's reading of BG-LPIPS)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def clip_score(images: jax.Array, texts: jax.Array) -> jax.Array:
    """Cosine of each image's vector `[B, D]` with its text's `[B, D]`: `[B]`, in [-1, 1]."""
    lengths = jnp.linalg.norm(images, axis=-1) * jnp.linalg.norm(texts, axis=-1)
    return jnp.sum(images * texts, axis=-1) / lengths


def directional_similarity(made, real, direction) -> jax.Array:
    """Cosine of each picture's change of features with a direction: `[B]`, in [-1, 1].

    As CLIP's directional similarity (Gal et al. 2022), whichever network the features are of. An
    unchanged picture scores 0.

    Args:
      made, real: features after and before, `[B, D]`.
      direction: `[D]`, such as from the mean of one word's pictures to that of another's.
    """
    change = jnp.asarray(made) - jnp.asarray(real)
    lengths = jnp.linalg.norm(change, axis=-1) * jnp.linalg.norm(direction)
    return change @ jnp.asarray(direction) / jnp.maximum(lengths, 1e-12)


def self_similarity(keys: jax.Array) -> jax.Array:
    """Cosines between the tokens of a picture: keys `[B, T, C]` → `[B, T, T]`."""
    keys = jnp.asarray(keys)
    lengths = jnp.linalg.norm(keys, axis=-1)
    products = jnp.einsum("btc,bsc->bts", keys, keys, precision=jax.lax.Precision.HIGHEST)
    return products / jnp.maximum(lengths[:, :, None] * lengths[:, None, :], 1e-8)


def structure_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of the keys `[B, T, C]` of two pictures: `[B]`, 0 where they are built alike."""
    return jnp.mean((self_similarity(a) - self_similarity(b)) ** 2, axis=(1, 2))


def background(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """uint8 `[B, H, W, 3]` with the object, where masks bool `[B, H, W]` are true, made black."""
    return np.where(np.asarray(masks)[..., None], np.uint8(0), pictures)
