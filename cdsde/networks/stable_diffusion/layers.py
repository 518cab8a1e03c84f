"""Pieces that the networks of a latent diffusion model share.

Contract: feature maps `[B, H, W, C]`, sequences `[B, L, C]`; parameters float32; normalisation and
softmax in float32 whatever the compute dtype of products and convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdsde.networks import convolution

CHUNK = 1024  # queries at a time: no matrix of all positions by all positions is ever held


def conv(
    features: int, size: int, name: str | None, stride: int = 1, padding=None, dtype=jnp.float32
):
    """A convolution with PyTorch's symmetric padding (`size // 2`), or the given one."""
    by = size // 2
    padding = ((by, by), (by, by)) if padding is None else padding
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding,
        dtype=dtype,
        conv_general_dilated=convolution.general,
        name=name,
    )


def dense(features: int, name: str | None, bias: bool = True, dtype=jnp.float32) -> nn.Dense:
    """A linear layer."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Group normalisation over positions and channels of a group, in float32."""

    groups: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, ..., C]` → the same."""
        norm = nn.GroupNorm(
            self.groups, epsilon=self.eps, use_fast_variance=False, dtype=jnp.float32
        )
        nn.share_scope(self, norm)  # its scale and bias are this module's
        return norm(x.astype(jnp.float32)).astype(self.dtype)


def layer_norm(name: str, eps: float = 1e-5, dtype: Any = jnp.float32) -> Callable:
    """Layer normalisation, in float32."""
    norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=jnp.float32, name=name)
    return lambda x: norm(x.astype(jnp.float32)).astype(dtype)


def gelu(x: jax.Array) -> jax.Array:
    """PyTorch's default, with the error function."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "silu": jax.nn.silu}


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`[B, L, C]` → `[B, L, heads, C / heads]`."""
    return x.reshape(*x.shape[:2], heads, -1)


def probabilities(q: jax.Array, k: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Attention maps `[B, heads, L, M]`, float32, of `[B, L, heads, D]` and `[B, M, heads, D]`."""
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def weigh(p: jax.Array, v: jax.Array) -> jax.Array:
    """Maps `[B, heads, L, M]` and values `[B, M, heads, D]` → `[B, L, heads · D]`."""
    out = jnp.einsum("bhlm,bmhd->blhd", p.astype(v.dtype), v)
    return out.reshape(*out.shape[:2], -1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`[B, L, heads, D]` each → `[B, L, heads · D]`; `CHUNK` queries at a time if many.

    What a chunk holds is computed again in the backward pass.
    """
    length = q.shape[1]
    if length <= CHUNK or length % CHUNK:
        return weigh(probabilities(q, k), v)

    @jax.checkpoint
    def some(part):
        return weigh(probabilities(part, k), v)

    parts = jnp.moveaxis(q.reshape(q.shape[0], -1, CHUNK, *q.shape[2:]), 1, 0)
    out = jnp.moveaxis(jax.lax.map(some, parts), 0, 1)
    return out.reshape(q.shape[0], length, -1)


def upsample(x: jax.Array) -> jax.Array:
    """Twice the side, nearest."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
