r"""A 3×3 convolution as one product and a sum of its parts, each shifted by its place in K.

    (x ∗ K)[p] = Σ_ij (x K[i, j])[p + (i, j) - border]                                           (1)

    ∂x[p] = Σ_ij (g K[i, j]ᵀ)[p - (i, j) + border]                                               (2)

A convolution gathers the nine neighbours of each position and then multiplies. Here the product
comes first, and nine of its results are gathered. On CPUs this is faster where few channels come
out, as in a network's last layer. It is also faster in (2) where there are fewer positions than
channels: K is the largest array there, and (2) reads it without rotating it or swapping channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

TAPS = [(i, j) for i in range(3) for j in range(3)]


def convolve(x: jax.Array, kernel: jax.Array, border: int) -> jax.Array:
    """Equation (1): `[B, H, W, C]`, `[3, 3, C, D]` -> `[B, H + 2 border - 2, …, D]`."""
    columns = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    return _summed(x, columns, border, TAPS)


def gradient(g: jax.Array, kernel: jax.Array, border: int) -> jax.Array:
    """Equation (2): `[B, H, W, D]`, `[3, 3, C, D]` -> `[B, H + 2 - 2 border, …, C]`."""
    rows = kernel.reshape(-1, kernel.shape[3])
    return _summed(g, rows.T, 2 - border, [(2 - i, 2 - j) for i, j in TAPS])


def _summed(x, columns, border: int, shifts):
    """The sum of the nine parts of x `columns`, each from its shift on."""
    batch, height, width, channels = x.shape
    parts = jnp.matmul(x.reshape(-1, channels), columns, preferred_element_type=jnp.float32)
    parts = parts.reshape(batch, height, width, 9, -1)
    parts = jnp.pad(parts, ((0, 0), (border, border), (border, border), (0, 0), (0, 0)))
    height, width = height + 2 * border - 2, width + 2 * border - 2
    found = [parts[:, i : i + height, j : j + width, n] for n, (i, j) in enumerate(shifts)]
    return sum(found[1:], found[0]).astype(x.dtype)
