r"""3×3 convolutions whose gradients are fast on CPUs, too; elsewhere they are XLA's own.

With y = x ∗ K (stride 1, borders of p zeros), the gradients of a loss with cotangent g are

    ∂x = g ∗ K', K' = K turned round and its channels swapped, with borders of 2 - p             (1)
    ∂K[i, j] = Σ over images and positions of x shifted by (i, j), times g                       (2)

XLA derives the same, but inside a loop its CPU compiler moves the swap of (1) out of it and is left
with a kernel that its fast routine does not take (4 to 8 times slower: the guided sampler is such a
loop); here the swapped kernel is made in place. (2) it computes at a seventh of the forward's rate
where x is larger than the cache; nine matrix products are faster there. Rates: docs/scaling.md.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

NUMBERS = ("NHWC", "HWIO", "NHWC")
LARGE = 2**22  # values of x from which on (2) is nine products


def general(x, kernel, window_strides, padding, **rest):
    """`jax.lax.conv_general_dilated` for `nn.Conv`; 3×3 with stride 1 have the gradients above."""
    border = _border(padding)
    plain = all(rest.get(k) in (None, 1, (1, 1)) for k in ("lhs_dilation", "rhs_dilation"))
    plain &= rest.get("feature_group_count", 1) == 1 and rest.get("precision") is None
    if kernel.shape[:2] == (3, 3) and tuple(window_strides) == (1, 1) and plain and border < 2:
        return conv3x3(x, kernel, border)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **rest)


def _border(padding) -> int:
    """Zeros on every side, 2 where they are not 0 or 1 on all of them."""
    if isinstance(padding, str):
        return {"SAME": 1, "VALID": 0}.get(padding, 2)
    sides = {n for pair in padding for n in pair}
    return sides.pop() if sides in ({0}, {1}) else 2


def _convolve(x, kernel, border: int):
    borders = [(border, border)] * 2
    return lax.conv_general_dilated(x, kernel, (1, 1), borders, dimension_numbers=NUMBERS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, border: int = 1) -> jax.Array:
    """`[B, H, W, C]` and `[3, 3, C, D]` → `[B, H + 2 border - 2, W + 2 border - 2, D]`."""
    return _convolve(x, kernel, border)


def _forward(x, kernel, border):
    return _convolve(x, kernel, border), (x, kernel)


def _backward(border, kept, g):
    x, kernel = kept
    own = functools.partial(_by_hand, border)
    derived = functools.partial(_derived, border)
    return lax.platform_dependent(x, kernel, g, cpu=own, default=derived)


def _derived(border, x, kernel, g):
    _, pull = jax.vjp(lambda x, kernel: _convolve(x, kernel, border), x, kernel)
    return pull(g)


def _by_hand(border, x, kernel, g):
    # The barrier keeps XLA from taking the turn and the swap into the convolution again.
    turned = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    to_x = _convolve(g, turned, 2 - border)
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
