"""Metrics of text edits: agreement with the text, and preservation of the rest of the image.

CLIP score           ⟨image, text⟩ of CLIP's unit vectors, without the usual factor 100
structure distance   mean (S(a) - S(b))², with S the cosines between the keys of an image in DINO's
                     last block (Tumanyan et al. 2022; pix2pix-zero's "Dist")
background           both images are multiplied by the complement of the object's mask before they
                     are compared (BG-LPIPS as in PnPInversion)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def clip_score(images: jax.Array, texts: jax.Array) -> jax.Array:
    """Cosine between image vectors `[B, D]` and text vectors `[B, D]`: `[B]` in [-1, 1]."""
    lengths = jnp.linalg.norm(images, axis=-1) * jnp.linalg.norm(texts, axis=-1)
    return jnp.sum(images * texts, axis=-1) / lengths


def directional_similarity(edited, original, direction) -> jax.Array:
    """Cosine between each image's change of features and a direction: `[B]` in [-1, 1].

    CLIP's directional similarity (Gal et al. 2022), for the features of any network. An unchanged
    image has the value 0.

    Args:
      edited, original: features after and before the edit, `[B, D]`.
      direction: `[D]`, for example between the mean features of two words' images.
    """
    change = jnp.asarray(edited) - jnp.asarray(original)
    lengths = jnp.linalg.norm(change, axis=-1) * jnp.linalg.norm(direction)
    return change @ jnp.asarray(direction) / jnp.maximum(lengths, 1e-12)


def self_similarity(keys: jax.Array) -> jax.Array:
    """Cosines between the tokens of each image: keys `[B, T, C]` → `[B, T, T]`."""
    keys = jnp.asarray(keys)
    lengths = jnp.linalg.norm(keys, axis=-1)
    products = jnp.einsum("btc,bsc->bts", keys, keys, precision=jax.lax.Precision.HIGHEST)
    return products / jnp.maximum(lengths[:, :, None] * lengths[:, None, :], 1e-8)


def structure_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """mean (S(a) - S(b))² of the keys `[B, T, C]` of two images: `[B]`, 0 for equal structure."""
    return jnp.mean((self_similarity(a) - self_similarity(b)) ** 2, axis=(1, 2))


def background(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Makes the object black: uint8 `[B, H, W, 3]`, with bool masks `[B, H, W]`, True on it."""
    return np.where(np.asarray(masks)[..., None], np.uint8(0), pictures)
