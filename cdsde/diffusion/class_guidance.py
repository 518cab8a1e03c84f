r"""Classifier-free guidance by a class (Ho and Salimans 2022).

With ε(c) the noise predicted for a class c and ∅ the null class,

    ε = ε(∅) + scale (ε(c) - ε(∅))
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp


def guided(apply: Callable, null: int, scale: float, channels: int | None = None) -> Callable:
    """A network with guidance, at the cost of two evaluations.

    Args:
      apply: `(x, t, y) -> [B, H, W, D]`, the noise in the first channels; t is a scalar or `[B]`.
      null: the class that stands for any class.
      scale: 1 is no guidance.
      channels: the number of channels that are guided; None is all channels of x. DiT's published
        sampling guides 3, of 4-channel latents too. Channels behind them are those of the class.

    Returns:
      A function as `apply`, with y int `[B]`.
    """

    def apply_guided(x, t, y):
        t = jnp.broadcast_to(jnp.asarray(t), y.shape)
        classes = jnp.concatenate([y, jnp.full_like(y, null)])
        out = apply(jnp.concatenate([x, x]), jnp.concatenate([t, t]), classes)
        of_class, of_null = jnp.split(out, 2)
        first = x.shape[-1] if channels is None else channels
        low = of_null[..., :first]
        mixed = low + scale * (of_class[..., :first] - low)
        return jnp.concatenate([mixed, of_class[..., first:]], axis=-1)

    return apply_guided
