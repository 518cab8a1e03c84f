r"""A 3×3 convolution with a quarter of the multiplications: Winograd's F(4×4, 3×3).

An image is cut into tiles of 4² positions. With a tile's 6² inputs d, where neighbours overlap by
two, and one pair of channels,

    y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ d B)] A                                                               (1)

(Lavin and Gray, arXiv:1509.09308, section 4.3). Over all channels, ⊙ is 36 products of matrices
`[tiles, C]` and `[C, D]`. They take 36 multiplications a tile and pair of channels, where the
convolution takes 144. With a loss's cotangent g of y, and K' = K rotated by 180° with its channels
swapped,

    ∂x = (1) of g and K'                                                                         (2)

    ∂K = Gᵀ [Σ over tiles of (Bᵀ d B) ⊙ (A g Aᵀ)] G                                              (3)

where (3) is the gradient of (1), which is linear in k.

The sums in (1) round more: in float32 the result differs by 1e-5 of its largest number, where a
plain convolution's differs by 1e-6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE, SPAN = 4, 6
# Bᵀ, G and Aᵀ, from polynomials that are evaluated at 0, 1, -1, 2, -2 and infinity.
TO_INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
TO_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
FROM_PRODUCTS = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ],
    np.float32,
)


def convolve(x: jax.Array, kernel: jax.Array, border: int) -> jax.Array:
    """Equation (1): `[B, H, W, C]`, `[3, 3, C, D]` -> `[B, H + 2 border - 2, …, D]`.

    The result's height and width are multiples of 4.
    """
    return _combined(_inputs(x, border), _kernels(kernel), "ptc,pcd->ptd")


def gradient(g: jax.Array, kernel: jax.Array, border: int) -> jax.Array:
    """Equation (2): `[B, H, W, D]`, `[3, 3, C, D]` -> `[B, H + 2 - 2 border, …, C]`.

    The result's height and width are multiples of 4.
    """
    return _combined(_inputs(g, 2 - border), _kernels(kernel[::-1, ::-1]), "ptd,pcd->ptc")


def kernel_gradient(x: jax.Array, g: jax.Array, border: int) -> jax.Array:
    """Equation (3): `[B, H, W, C]`, `[B, H + 2 border - 2, …, D]` -> `[3, 3, C, D]`.

    Height and width of g are multiples of 4.
    """
    batch, height, width, channels = g.shape
    g = g.reshape(batch, height // TILE, TILE, width // TILE, TILE, channels)
    g = _weighted(FROM_PRODUCTS.T, [g[:, :, i] for i in range(TILE)], 0)
    g = _weighted(FROM_PRODUCTS.T, [g[..., j, :] for j in range(TILE)], 1)
    sums = jnp.einsum("ptc,ptd->pcd", _rows(_inputs(x, border)), _rows(g))
    return _both(TO_KERNEL.T, sums.reshape(SPAN, SPAN, *sums.shape[1:]))


def _kernels(kernel):
    """G k Gᵀ: `[3, 3, C, D]` -> `[36, C, D]`."""
    return _both(TO_KERNEL, kernel).reshape(SPAN**2, *kernel.shape[2:])


def _inputs(x, border: int):
    """Bᵀ d B of all tiles: `[6, 6, B, H / 4, W / 4, C]`."""
    batch, height, width, channels = x.shape
    rows, columns = ((n + 2 * border - 2) // TILE for n in (height, width))
    ends = [(border, TILE * (n + 1) - m - border) for n, m in ((rows, height), (columns, width))]
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    x = x.reshape(batch, rows + 1, TILE, columns + 1, TILE, channels)
    places = [divmod(i, TILE) for i in range(SPAN)]
    x = _weighted(TO_INPUTS, [x[:, at : at + rows, i] for at, i in places], 0)
    return _weighted(TO_INPUTS, [x[:, :, :, at : at + columns, j] for at, j in places], 1)


def _combined(inputs, kernels, products: str):
    """Aᵀ [kernels ⊙ inputs] A: the image `[B, H, W, D]`, of products over one of the channels."""
    _, _, batch, rows, columns, _ = inputs.shape
    y = jnp.einsum(products, _rows(inputs), kernels)
    y = _both(FROM_PRODUCTS, y.reshape(SPAN, SPAN, batch, rows, columns, -1))
    y = y.transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(batch, TILE * rows, TILE * columns, -1)


def _both(matrix, parts):
    """M P Mᵀ, for P `[n, n, …]`."""
    rows = _weighted(matrix, list(parts), 0)
    return _weighted(matrix, [rows[:, j] for j in range(rows.shape[1])], 1)


def _weighted(matrix, parts, axis: int):
    """M p, for a list p of arrays, along a new axis.

    The barrier keeps XLA from computing the sums over rows again for each of those over columns.
    """
    sums = [_weighted_sum(row, parts) for row in matrix.tolist()]
    return lax.optimization_barrier(jnp.stack(sums, axis))


def _weighted_sum(weights, parts):
    terms = [w * p for w, p in zip(weights, parts, strict=True) if w != 0]
    return sum(terms[1:], terms[0])


def _rows(x):
    """`[6, 6, …, C]` -> `[36, positions, C]`."""
    return x.reshape(SPAN**2, -1, x.shape[-1])
