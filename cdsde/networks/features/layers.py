"""Layers that the feature networks share, and checks of their input.

Contract: maps are `[B, H, W, C]` float32; products run at the highest precision, so that a metric
does not depend on the device; no output depends on other images of the batch.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

Conv = functools.partial(nn.Conv, precision=jax.lax.Precision.HIGHEST)
Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
BATCH_NORM_EPS = 1e-3  # of both the 2015 Inception and EfficientNet


class BatchNorm(nn.Module):
    """Batch normalisation by running statistics; parameters have their published names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., C]` -> the same shape."""
        shape = x.shape[-1:]
        weight = self.param("weight", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("running_mean", nn.initializers.zeros, shape)
        variance = self.param("running_var", nn.initializers.ones, shape)
        scale = weight * jax.lax.rsqrt(variance + BATCH_NORM_EPS)
        wide = (1,) * (x.ndim - 1) + shape
        return (x - mean.reshape(wide)) * scale.reshape(wide) + bias.reshape(wide)


class DepthwiseConv(nn.Module):
    """One filter per channel, "SAME" padding, no bias; the kernel is that of a grouped `nn.Conv`.

    It is a sum of shifted products, which XLA fuses; on CPUs, XLA's grouped convolution takes 3 to
    20 times as long.
    """

    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ⌈H / stride⌉, ⌈W / stride⌉, C]`."""
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        out = [-(-side // self.stride) for side in x.shape[1:3]]
        reach = [(n - 1) * self.stride for n in out]
        total = [max(r + self.size - n, 0) for r, n in zip(reach, x.shape[1:3], strict=True)]
        x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in total), (0, 0)))

        def shifted(i, j):
            rows = slice(i, i + reach[0] + 1, self.stride)
            return x[:, rows, j : j + reach[1] + 1 : self.stride] * kernel[i, j, None, None]

        taps = range(self.size)
        return functools.reduce(jnp.add, (shifted(i, j) for i in taps for j in taps))


def spatial_mean(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, C]`."""
    return jnp.mean(x, axis=(1, 2))


def check_images(images: jax.Array, what: str, least: int = 1) -> jax.Array:
    """Float images `[B, H, W, 3]` as float32, after checks; `what` names the network in errors.

    Raises:
      ValueError: another shape, integers (which are not scaled), or a side shorter than `least`.
    """
    shape = jnp.shape(images)
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"{what} takes images [B, H, W, 3], not an array of shape {shape}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{what} takes floating point images, not {images.dtype}: scale them to its range, or "
            "use cdsde.features.load, which takes uint8."
        )
    if min(shape[1:3]) < least:
        raise ValueError(
            f"{what} needs sides of at least {least} pixels, not {shape[1]}x{shape[2]}: enlarge "
            "the images."
        )
    return jnp.asarray(images, jnp.float32)
