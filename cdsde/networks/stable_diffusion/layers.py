"""Layers that the networks of a latent diffusion model share.

Contract: feature maps `[B, H, W, C]`, sequences `[B, L, C]`; parameters float32; normalisation and
softmax in float32 whatever the compute dtype of products and convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdsde.networks import convolution, normalisation

CHUNK = 1024  # queries per pass, to avoid a matrix of all positions by all positions


def conv(
    features: int, size: int, name: str | None, stride: int = 1, padding=None, dtype=jnp.float32
):
    """A square convolution; `padding` is symmetric, `size // 2`, as in PyTorch, if None."""
    border = size // 2
    padding = ((border, border), (border, border)) if padding is None else padding
    return convolution.Conv(features, size, padding, stride, dtype=dtype, name=name)


def dense(features: int, name: str | None, bias: bool = True, dtype=jnp.float32) -> nn.Dense:
    """A linear layer."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Group normalisation over positions and the channels of a group, computed in float32."""

    groups: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, ..., C]` → the same shape, in `dtype`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        positions = x.reshape(x.shape[0], -1, channels)
        args = (scale[None, :], bias[None, :], self.groups, self.eps, False)
        y = normalisation.normalise(positions, *args)
        return y.reshape(x.shape).astype(self.dtype)


def layer_norm(name: str, eps: float = 1e-5, dtype: Any = jnp.float32) -> Callable:
    """Layer normalisation, computed in float32, with output in `dtype`."""
    norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=jnp.float32, name=name)
    return lambda x: norm(x.astype(jnp.float32)).astype(dtype)


def gelu(x: jax.Array) -> jax.Array:
    """GELU with the error function, PyTorch's default."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU, x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "silu": jax.nn.silu}


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`[B, L, C]` → `[B, L, heads, C / heads]`."""
    return x.reshape(*x.shape[:2], heads, -1)


def probabilities(q: jax.Array, k: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Attention maps softmax(q kᵀ / √D), float32 `[B, heads, L, M]`.

    Args:
      q: `[B, L, heads, D]`.
      k: `[B, M, heads, D]`.
      mask: bool, broadcasts to `[B, heads, L, M]`; False hides a key.
    """
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def weigh(p: jax.Array, v: jax.Array) -> jax.Array:
    """Maps `[B, heads, L, M]` applied to values `[B, M, heads, D]` → `[B, L, heads · D]`."""
    out = jnp.einsum("bhlm,bmhd->blhd", p.astype(v.dtype), v)
    return out.reshape(*out.shape[:2], -1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Self-attention, `[B, L, heads, D]` each → `[B, L, heads · D]`.

    If L is a larger multiple of `CHUNK`, queries run in chunks that the backward pass recomputes.
    """
    length = q.shape[1]
    if length <= CHUNK or length % CHUNK:
        return weigh(probabilities(q, k), v)

    @jax.checkpoint
    def attend_chunk(queries):
        return weigh(probabilities(queries, k), v)

    chunks = jnp.moveaxis(q.reshape(q.shape[0], -1, CHUNK, *q.shape[2:]), 1, 0)
    out = jnp.moveaxis(jax.lax.map(attend_chunk, chunks), 0, 1)
    return out.reshape(q.shape[0], length, -1)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling, `[B, H, W, C]` → `[B, 2H, 2W, C]`."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
