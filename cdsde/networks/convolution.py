r"""Convolutions with fast gradients on CPUs; other devices use XLA's own.

With y = x ∗ K (stride 1, borders of p zeros), the gradients of a loss with cotangent g are

    ∂x = g ∗ K' with borders of 2 - p; K' is K rotated by 180° with its channels swapped         (1)
    ∂K[i, j] = Σ over images and positions of x shifted by (i, j), times g                       (2)

XLA derives the same formulas, and two of its choices are slow on CPUs:

- Inside a loop, such as the guided sampler's, it hoists the swap of (1) and then cannot use its
  fast routine (4 to 8 times slower). Here the swapped kernel is computed inside the loop. Small
  images with many channels are rotated themselves, in place of K.
- It computes (2) as a convolution whose input channels are the images, so one or two large images
  give it one or two channels. Here such images are cut into blocks, with a border of one pixel
  from their neighbours, and (2) sums over blocks instead of images.

Where few channels come out, and in (1) where there are fewer positions than channels, a product of
matrices comes first and its parts are shifted and added (shifted.py). Images with many positions
and channels take a quarter of the multiplications (winograd.py), in float32.

The gradient of a bias is the sum of g over images and positions. Summed in one go it takes one
thread; so positions are summed first, image by image, and then images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cdsde.networks import shifted, winograd

NUMBERS = ("NHWC", "HWIO", "NHWC")
BLOCK = 16  # side of the blocks
FEW = 2  # largest batch that is cut into blocks
NARROW = 32  # with fewer channels (2) is XLA's own form
# Least positions of an image for Winograd's form, which takes longer to compile and to load.
# Programs that only sample small images gain less from it than they wait for at their start.
FORWARD, GRADIENT = 32**2, 16**2


class Conv(nn.Module):
    """A square convolution with bias, `[B, H, W, C]` -> `[B, H', W', features]`, in `dtype`.

    Parameters (`kernel` [size, size, C, features], `bias` [features]) are float32, as in `nn.Conv`.
    """

    features: int
    size: int
    padding: Sequence[tuple[int, int]]
    stride: int = 1
    kernel_init: Any = nn.linear.default_kernel_init
    bias_init: Any = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The padded convolution of `x`, plus the bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return add_bias(convolve(x, kernel, self.stride, self.padding), bias)


def convolve(x, kernel, stride: int, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """x ∗ K, in the form that is fast for this kernel."""
    borders = {n for pair in padding for n in pair}
    if stride == 1 and kernel.shape[0] == 1 and borders == {0}:
        return product(x, kernel[0, 0])
    if stride == 1 and kernel.shape[0] == 3 and borders in ({0}, {1}):
        return conv3x3(x, kernel, borders.pop())
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=NUMBERS)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x K over the last axis: `[..., C]`, `[C, D]` -> `[..., D]`, for rows in one long matrix."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _product_gradients(residuals, g):
    x, kernel = residuals
    rows, to_rows = (a.reshape(-1, a.shape[-1]) for a in (x, g))
    return (to_rows @ kernel.T).reshape(x.shape), rows.T @ to_rows


product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_gradients)


def summed(rows: jax.Array) -> jax.Array:
    """The sum of the rows, `[N, C]` -> `[1, C]`, as a product with ones."""
    ones = jnp.ones((1, rows.shape[0]), rows.dtype)
    return jnp.matmul(ones, rows, precision=lax.Precision.HIGHEST)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`[B, H, W, C]` plus `[C]`."""
    return x + bias[None, None, None, :]


def _bias_gradient(_, g):
    # One product over all positions would round too much for CUT's reference vectors.
    return g, summed(g.sum(axis=(1, 2)))[0]


add_bias.defvjp(lambda x, bias: (x + bias[None, None, None, :], None), _bias_gradient)


def _convolve(x, kernel, border: int):
    borders = [(border, border)] * 2
    return lax.conv_general_dilated(x, kernel, (1, 1), borders, dimension_numbers=NUMBERS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, border: int = 1) -> jax.Array:
    """x ∗ K: `[B, H, W, C]`, `[3, 3, C, D]` → `[B, H + 2 border - 2, W + 2 border - 2, D]`."""
    default = functools.partial(_convolve, border=border)
    if _few_come_out(*kernel.shape[2:]):
        fast = functools.partial(shifted.convolve, border=border)
    elif _many_meet(kernel, [n + 2 * border - 2 for n in x.shape[1:3]], FORWARD):
        fast = functools.partial(winograd.convolve, border=border)
    else:
        return default(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=fast, default=default)


def _few_come_out(inputs: int, outputs: int) -> bool:
    """Whether a position's nine parts have no more numbers than its channels."""
    return 9 * outputs <= inputs


def _many_meet(kernel, size: Sequence[int], least: int) -> bool:
    """Whether Winograd's form pays for images of this size: its 36 kernels are read once for all.

    As for all these choices, the batch does not count, so that programs exported for any batch
    round alike.
    """
    channels = kernel.shape[2:]
    return (
        kernel.dtype == jnp.float32
        and size[0] % winograd.TILE == size[1] % winograd.TILE == 0
        and min(channels) >= 64
        and math.prod(size) >= max(least, math.prod(channels) / 256)
    )


def _forward(x, kernel, border):
    return conv3x3(x, kernel, border), (x, kernel)


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
    positions, channels = g.shape[1] * g.shape[2], x.shape[-1]
    if _few_come_out(g.shape[-1], channels) or 2 * positions < channels:
        to_x = shifted.gradient(g, kernel, border)
    elif _many_meet(kernel, x.shape[1:3], GRADIENT):
        to_x = winograd.gradient(g, kernel, border)
    elif positions < 9 * channels:  # an image is smaller than K
        swapped = lax.optimization_barrier(kernel.swapaxes(2, 3))
        to_x = _convolve(g[:, ::-1, ::-1], swapped, 2 - border)[:, ::-1, ::-1]
    else:
        rotated = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
        to_x = _convolve(g, rotated, 2 - border)
    if _many_meet(kernel, g.shape[1:3], GRADIENT):
        return to_x, winograd.kernel_gradient(x, g, border)
    if side := _block_side(x, g):
        return to_x, _kernel_gradient_of_blocks(border, x, g, side).astype(kernel.dtype)
    _, pull = jax.vjp(lambda kernel: _convolve(x, kernel, border), kernel)
    return to_x, pull(g)[0]


def _block_side(x, g) -> int:
    """The side of the blocks, or 0 where (2) is XLA's own form, as for any batch (jax.export)."""
    batch, height, width, channels = g.shape
    if not isinstance(batch, int):
        return 0
    side = BLOCK if min(height, width) > BLOCK else min(height, width) // 2
    if batch > FEW or min(x.shape[-1], channels) < NARROW or side < 4:
        return 0
    return 0 if height % side or width % side else side


def _kernel_gradient_of_blocks(border, x, g, side: int):
    """Equation (2) over blocks of `side`² positions: `[3, 3, C, D]`."""
    batch, height, width, channels = g.shape
    rows, columns = height // side, width // side
    x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    x = jnp.stack([x[:, i * side : (i + 1) * side + 2] for i in range(rows)], 1)
    x = jnp.stack([x[:, :, :, j * side : (j + 1) * side + 2] for j in range(columns)], 2)
    g = g.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
    return lax.conv_general_dilated(
        x.reshape(-1, side + 2, side + 2, x.shape[-1]),
        g.reshape(-1, side, side, channels),
        (1, 1),
        "VALID",
        # The blocks are summed over, as input channels are; the channels of x are independent.
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )


conv3x3.defvjp(_forward, _backward)
