r"""The shortest vector of a convex hull, by Frank and Wolfe: SDDM's combination of gradients.

    min |Σ_n a_n v_n|²,   a_n ≥ 0,   Σ_n a_n = 1                                              (1)

From a = 1/N, `STEPS` times, with the Gram matrix M of the vectors:

    k = argmin aM,   γ = (aMa - e_k M a)/(e_k M e_k + aMa - 2 e_k M a) in [0, 1],
    a ← (1-γ) a + γ e_k

Two vectors need one step; for more, `STEPS` steps come near the minimum (Sener and Koltun 2018,
algorithm 2; Sun et al. 2023, equation 13).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

STEPS = 20
STOP = 1e-4  # an image stops where its mean γ is smaller; the published code takes the batch's mean


def shortest(gradients: Sequence[jax.Array], blocks: int = 1) -> jax.Array:
    """The shortest combination of `[B, H, W, C]` arrays, for each image and channel by itself.

    Args:
      gradients: the arrays.
      blocks: number of blocks along each side; each has coefficients of its own.
    """
    b, h, w, c = gradients[0].shape
    shape = (b, blocks, h // blocks, blocks, w // blocks, c)
    cut = jnp.stack([g.reshape(shape) for g in gradients]).transpose(1, 2, 4, 6, 0, 3, 5)
    a = weights(cut.reshape(*cut.shape[:5], -1))
    return jnp.einsum("bijcn,bijcnhw->bihjwc", a, cut).reshape(b, h, w, c)


def weights(vectors: jax.Array) -> jax.Array:
    """The coefficients a of equation (1): `[B, ..., N, D]` -> `[B, ..., N]`; images come first."""
    products = jnp.einsum(
        "...nd,...md->...nm", vectors, vectors, precision=jax.lax.Precision.HIGHEST
    )
    count = vectors.shape[-2]

    def step(_, state):
        a, active = state
        slope = jnp.einsum("...n,...nm->...m", a, products, precision=jax.lax.Precision.HIGHEST)
        k = jnp.argmin(slope, axis=-1)
        corner = jax.nn.one_hot(k, count, dtype=a.dtype)
        value = jnp.sum(slope * a, axis=-1)
        at_corner = jnp.sum(slope * corner, axis=-1)
        length = jnp.sum(jnp.diagonal(products, axis1=-2, axis2=-1) * corner, axis=-1)
        gamma = (value - at_corner) / (length + value - 2 * at_corner)
        gamma = jnp.clip(jnp.where(jnp.isnan(gamma), 1.0, gamma), 0.0, 1.0)
        moved = (1 - gamma[..., None]) * a + gamma[..., None] * corner
        now = active.reshape((-1,) + (1,) * (a.ndim - 1))
        size = jnp.abs(gamma).reshape(a.shape[0], -1).mean(axis=1)
        return jnp.where(now, moved, a), active & (size >= STOP)

    start = jnp.full(vectors.shape[:-1], 1 / count, vectors.dtype)
    return jax.lax.fori_loop(0, STEPS, step, (start, jnp.ones(start.shape[:1], bool)))[0]
