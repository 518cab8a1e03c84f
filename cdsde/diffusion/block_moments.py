r"""Images with the block moments of a source: the manifold of SDDM (Sun et al. 2023, section 3).

An image is cut into A × A blocks. With the mean m0 and the deviation s0 (unbiased, plus 1e-5 under
the root) of the source's blocks, per channel, the perturbed source has at level i

    m_i = √ᾱ_i m0,   s_i = √(ᾱ_i s0² + 1 - ᾱ_i)                                               (1)

    projection   P_i(x) = (x - mean x)/std x · s_i + m_i                                      (2)
    tangent      T_i(v) = v' - ⟨v', u⟩/⟨u, u⟩ u,   v' = v - mean v,   u = x - m_i              (3)
    block AdaIN  (x - mean x)/std x · s0 + m0, which the energy compares with x               (4)

Means, deviations and products are over the pixels of a block. Arrays are `[B, H, W, C]`, moments
`[B, A, 1, A, 1, C]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

EPS = 1e-5  # added to variances


class Moments(NamedTuple):
    """Mean and deviation of each block, `[B, A, 1, A, 1, C]`."""

    mean: Any
    std: Any


def moments(x: jax.Array, blocks: int) -> Moments:
    """The moments of A × A blocks of `x`, A = `blocks`."""
    return _moments(_cut(x, blocks))


def at_level(source: Moments, alpha_bar) -> Moments:
    """Equation (1)."""
    variance = alpha_bar * jnp.square(source.std) + 1 - alpha_bar
    return Moments(jnp.sqrt(alpha_bar) * source.mean, jnp.sqrt(variance))


def project(x: jax.Array, to: Moments) -> jax.Array:
    """Equation (2), and equation (4) for the source's own moments."""
    blocks = _cut(x, to.mean.shape[1])
    mean, std = _moments(blocks)
    return _join((blocks - mean) / std * to.std + to.mean)


def tangent(v: jax.Array, x: jax.Array, at: Moments) -> jax.Array:
    """Equation (3): the part of `v` along the manifold at `x`."""
    count = at.mean.shape[1]
    v, u = _cut(v, count), _cut(x, count) - at.mean
    v = v - v.mean(axis=(2, 4), keepdims=True)
    inner, length = (jnp.sum(a * u, axis=(2, 4), keepdims=True) for a in (v, u))
    return _join(v - inner / length * u)


def scaled_tangent(v: jax.Array, x: jax.Array, at: Moments, like: jax.Array, factor) -> jax.Array:
    """Equation (3) at `factor` times the length of `like`, of each image and channel.

    A block where `v` has no tangent part takes `like`, so that it has no say in least_norm.py.
    """
    t = tangent(v, x, at)
    length, wanted = (
        jnp.sqrt(jnp.sum(jnp.square(a), axis=(1, 2), keepdims=True)) for a in (t, like)
    )
    count = at.mean.shape[1]
    absent = jnp.all(_cut(t, count) == 0, axis=(2, 4), keepdims=True)
    scaled = t * factor / jnp.maximum(length, 1e-20) * wanted
    return _join(jnp.where(absent, _cut(like, count), _cut(scaled, count)))


def energy(features: Callable, blocks: int) -> Callable:
    """The energy `(y, x0, i) -> [B]`: squared distance of features to their block AdaIN (4).

    Args:
      features: `x -> [B, H, W, C]`; the moments come from the features of the clean source x0.
      blocks: A.
    """

    def distance(y, x0, i):
        h = features(y)
        to = jax.lax.stop_gradient(moments(features(x0), blocks))
        return jnp.sum(jnp.square(h - project(h, to)), axis=(1, 2, 3))

    return distance


def _cut(x, count: int):
    b, h, w, c = x.shape
    return x.reshape(b, count, h // count, count, w // count, c)


def _join(blocks):
    b, a, height, _, width, c = blocks.shape
    return blocks.reshape(b, a * height, a * width, c)


def _moments(blocks) -> Moments:
    variance = jnp.var(blocks, axis=(2, 4), keepdims=True, ddof=1)
    return Moments(blocks.mean(axis=(2, 4), keepdims=True), jnp.sqrt(variance + EPS))
