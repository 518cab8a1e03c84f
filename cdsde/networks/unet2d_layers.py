"""Layers of diffusers' UNet2DModel (unet2d.py): time features, residual block, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks import blocks, fir, normalisation

TAPS = (1, 3, 3, 1)  # the filter of the Skip blocks
ACTIVATIONS: dict[str, Callable] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}


def time_features(t: jax.Array, width: int, shift: float, cosines_first: bool) -> jax.Array:
    """Sines and cosines of an index: `[B]` -> `[B, width]` float32.

    Args:
      t: `[B]` float32.
      width: number of channels, even.
      shift: subtracted from width / 2, the number of frequencies, in their exponent's divisor.
      cosines_first: whether cosines come before sines.
    """
    half = width // 2
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32)
    exponents = exponents / np.float32(half - shift)
    # Rounded once: an index of 999 magnifies the last bit of a frequency a thousand times.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t[:, None] * frequencies[None, :]
    both = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(both[::-1] if cosines_first else both, axis=-1)


class FourierFeatures(nn.Module):
    """Sines and cosines of ln σ times frequencies that are fixed at random."""

    width: int

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        """`[B]` -> `[B, 2 width]`."""
        weight = self.param("weight", nn.initializers.normal(16.0), (self.width,), jnp.float32)
        angles = jnp.log(sigma)[:, None] * weight[None, :] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class GroupNorm(nn.Module):
    """Group normalisation, optionally modulated, and the activation after it."""

    groups: int
    eps: float
    act: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, modulation: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """`[B, H, W, C]` -> the same; `modulation` is `(scale, shift)`, each `[B, C]` float32."""
        shape, channels = x.shape, x.shape[-1]
        if channels % max(self.groups, 1) or self.groups < 1:
            raise ValueError(
                f"{'/'.join(self.path)} normalises {channels} channels in {self.groups} groups; "
                "the groups (norm_num_groups) must divide every width"
            )
        gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None, :]
        offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, :]
        if modulation is not None:
            scale, shift = modulation
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        silu = self.act in ("silu", "swish")
        x = x.reshape(shape[0], -1, channels)
        x = normalisation.normalise(x, gain, offset, self.groups, self.eps, silu)
        if self.act is not None and not silu:
            x = ACTIVATIONS[self.act](x)
        return x.reshape(shape).astype(self.dtype)


def _resample(x: jax.Array, direction: str, filtered: bool) -> jax.Array:
    if filtered:
        return {"up": fir.upsample, "down": fir.downsample}[direction](x, TAPS)
    return {"up": blocks.upsample_nearest, "down": blocks.downsample_mean}[direction](x)


class ResnetBlock(nn.Module):
    """Residual block, `[B, H, W, C]` -> `[B, H', W', features]`.

    Attributes:
      features: channels of the result.
      groups: groups of the two normalisations.
      eps, act: their epsilon, and the activation after them.
      scale_shift: whether the time scales and shifts the second one, or is added before it.
      resample: None, "up" or "down".
      filtered: whether a FIR filter resamples; the shortcut then always has a convolution.
      divisor: divides the result.
    """

    features: int
    groups: tuple[int, int]
    eps: float
    act: str = "silu"
    scale_shift: bool = False
    resample: str | None = None
    filtered: bool = False
    divisor: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """`emb` is the activated time embedding, `[B, E]` float32, which all blocks share."""
        first, second = (
            GroupNorm(groups, self.eps, self.act, self.dtype, name=name)
            for groups, name in zip(self.groups, ("norm1", "norm2"), strict=True)
        )
        h = first(x)
        if self.resample is not None:
            h, x = (_resample(a, self.resample, self.filtered) for a in (h, x))
        h = blocks.conv(h, self.features, name="conv1", dtype=self.dtype)
        shift = blocks.dense(emb, (1 + self.scale_shift) * self.features, name="time_emb_proj")
        if self.scale_shift:
            h = second(h, tuple(jnp.split(shift, 2, axis=-1)))
        else:
            h = second(h + shift[:, None, None, :].astype(self.dtype))
        h = blocks.conv(h, self.features, name="conv2", dtype=self.dtype)
        if self.filtered or x.shape[-1] != self.features:
            x = blocks.conv(x, self.features, kernel=1, name="conv_shortcut", dtype=self.dtype)
        return (x + h) / self.divisor


class Attention(nn.Module):
    """Residual self-attention over all positions; `groups` is None for no normalisation."""

    head_dim: int
    groups: int | None
    eps: float
    divisor: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same."""
        b, h, w, c = x.shape
        heads = c // self.head_dim
        if not heads:
            raise ValueError(
                f"{'/'.join(self.path)} has {c} channels, fewer than attention_head_dim, "
                f"{self.head_dim}"
            )
        y = x.astype(self.dtype)
        if self.groups is not None:
            y = GroupNorm(self.groups, self.eps, dtype=self.dtype, name="group_norm")(x)
        y = y.reshape(b, h * w, c)
        # As published, channels beyond a whole number of heads have no queries.
        q, k, v = (
            blocks.dense(y, heads * self.head_dim, name=f"to_{n}", dtype=self.dtype).reshape(
                b, h * w, heads, self.head_dim
            )
            for n in "qkv"
        )
        y = blocks.attend(q, k, v).reshape(b, h * w, heads * self.head_dim)
        y = blocks.dense(y, c, name="to_out.0", dtype=self.dtype)
        return (x + y.reshape(b, h, w, c)) / self.divisor
