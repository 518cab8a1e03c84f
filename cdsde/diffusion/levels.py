"""Which noise levels a training step looks at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def draw_levels(key, shares: np.ndarray, count: int):
    """`count` indices, i with probability `shares[i]`; one a stratum, which has less variance."""
    draw, shuffle = jax.random.split(key)
    u = (jnp.arange(count) + jax.random.uniform(draw, (count,))) / count
    # Shuffled, so that a stratum is not tied to a domain (the domains alternate in a batch).
    u = jax.random.permutation(shuffle, u)
    up_to = np.cumsum(shares).astype(np.float32)
    return jnp.minimum(jnp.searchsorted(up_to, u, side="right"), len(shares) - 1)


def uniform(count: int) -> np.ndarray:
    """Each level as often as any other."""
    return np.full(count, 1 / count)
