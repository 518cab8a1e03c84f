r"""3×3 convolutions with fast gradients on CPUs; other devices use the gradients of XLA.

With y = x ∗ K (stride 1, borders of p zeros), the gradients of a loss with cotangent g are

    ∂x = g ∗ K' with borders of 2 - p; K' is K rotated by 180° with its channels swapped         (1)
    ∂K[i, j] = Σ over images and positions of x shifted by (i, j), times g                       (2)

XLA derives the same formulas. Inside a loop, such as the guided sampler's, its CPU compiler hoists
the swap of (1) and then cannot use its fast routine (4 to 8 times slower); here the swapped kernel
is computed inside the loop. Where x exceeds the cache, XLA computes (2) at a seventh of the rate of
the forward pass; nine matrix products are faster. Rates: docs/scaling.md.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

NUMBERS = ("NHWC", "HWIO", "NHWC")
LARGE = 2**22  # number of values of x from which (2) is nine matrix products


def general(x, kernel, window_strides, padding, **rest):
    """`lax.conv_general_dilated` for `nn.Conv`; 3×3 kernels with stride 1 use `conv3x3`."""
    border = _border(padding)
    plain = all(rest.get(k) in (None, 1, (1, 1)) for k in ("lhs_dilation", "rhs_dilation"))
    plain &= rest.get("feature_group_count", 1) == 1 and rest.get("precision") is None
    if kernel.shape[:2] == (3, 3) and tuple(window_strides) == (1, 1) and plain and border < 2:
        return conv3x3(x, kernel, border)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **rest)


def _border(padding) -> int:
    """The padding if it is 0 or 1 on all sides, else 2."""
    if isinstance(padding, str):
        return {"SAME": 1, "VALID": 0}.get(padding, 2)
    sides = {n for pair in padding for n in pair}
    return sides.pop() if sides in ({0}, {1}) else 2


def _convolve(x, kernel, border: int):
    borders = [(border, border)] * 2
    return lax.conv_general_dilated(x, kernel, (1, 1), borders, dimension_numbers=NUMBERS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, border: int = 1) -> jax.Array:
    """x ∗ K: `[B, H, W, C]`, `[3, 3, C, D]` → `[B, H + 2 border - 2, W + 2 border - 2, D]`."""
    return _convolve(x, kernel, border)


def _forward(x, kernel, border):
    return _convolve(x, kernel, border), (x, kernel)


def _backward(border, residuals, g):
    x, kernel = residuals
    explicit = functools.partial(_explicit_gradients, border)
    default = functools.partial(_default_gradients, border)
    return lax.platform_dependent(x, kernel, g, cpu=explicit, default=default)


def _default_gradients(border, x, kernel, g):
    _, pull = jax.vjp(lambda x, kernel: _convolve(x, kernel, border), x, kernel)
    return pull(g)


def _explicit_gradients(border, x, kernel, g):
    # The barrier keeps XLA from fusing the rotation and the swap into the convolution again.
    rotated = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    to_x = _convolve(g, rotated, 2 - border)
    if x.size < LARGE:
        _, pull = jax.vjp(lambda kernel: _convolve(x, kernel, border), kernel)
        return to_x, pull(g)[0]
    padded = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    height, width = g.shape[1:3]
    rows = g.reshape(-1, g.shape[-1])
    products = [
        lax.dot_general(
            padded[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]),
            rows,
            (((0,), (0,)), ((), ())),
        )
        for i in range(3)
        for j in range(3)
    ]
    return to_x, jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


conv3x3.defvjp(_forward, _backward)
