r"""Regularisation of inverted noise towards Gaussian (pix2pix-zero, Parmar et al. 2023, eq. 4).

    AC(e) = Σ over levels of a pyramid of mean(e ⊙ roll(e, r, rows))² + the same for columns    (1)
    KL(e) = var + mean² - 1 - log(var + 1e-7)                                                  (2)

with the unbiased variance. A shift r > 0 is drawn for each channel and level.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def levels(side: int) -> list[int]:
    """Sides of the pyramid: `side`, halved until it is at most 8."""
    sides = [side]
    while sides[-1] > 8:
        sides.append(sides[-1] // 2)
    return sides


def draw_shifts(key, batch: tuple[int, ...], channels: int, side: int) -> jax.Array:
    """Random shifts r in 1 … side/2 - 1 of each level, int32 `[*batch, channels, levels]`."""
    sides = levels(side)
    keys = jax.random.split(key, len(sides))
    drawn = [
        jax.random.randint(k, (*batch, channels), 1, max(2, n // 2))
        for k, n in zip(keys, sides, strict=True)
    ]
    return jnp.stack(drawn, axis=-1)


def autocorrelation(e: jax.Array, shifts: jax.Array) -> jax.Array:
    """Equation (1) of one noise `[H, W, C]`, summed over channels; shifts are `[C, levels]`."""
    total, channels = jnp.zeros(()), jnp.moveaxis(e, -1, 0)

    def correlated(plane, r):
        # `jnp.roll` by a traced shift.
        rows = jnp.take(plane, (jnp.arange(plane.shape[0]) - r) % plane.shape[0], axis=0)
        columns = jnp.take(plane, (jnp.arange(plane.shape[1]) - r) % plane.shape[1], axis=1)
        return jnp.mean(plane * rows) ** 2 + jnp.mean(plane * columns) ** 2

    for level, _ in enumerate(levels(e.shape[0])):
        total += jnp.sum(jax.vmap(correlated)(channels, shifts[:, level]))
        c, h, w = channels.shape
        h, w = h // 2 * 2, w // 2 * 2
        channels = channels[:, :h, :w].reshape(c, h // 2, 2, w // 2, 2).mean((2, 4))
    return total


def divergence(e: jax.Array) -> jax.Array:
    """Equation (2) over all values of one noise."""
    variance = jnp.var(e, ddof=1)
    return variance + jnp.mean(e) ** 2 - 1 - jnp.log(variance + 1e-7)


def towards_noise(
    e: jax.Array, shifts: jax.Array, correlation: float = 20.0, normal: float = 20.0
) -> jax.Array:
    """Predicted noise `[B, H, W, C]` after gradient steps on (1) and (2) in turns.

    Args:
      e: `[B, H, W, C]`.
      shifts: `[rounds, inner, C, levels]`: each round takes `inner` steps on (1) and one on (2).
      correlation, normal: step lengths per round for (1), divided among its steps, and for (2).
    """
    inner = shifts.shape[1]

    def one(e):
        def step(e, r):
            slope = jax.grad(autocorrelation)(e, r)
            return e - correlation * slope / inner, None

        def round_(e, r):
            e, _ = jax.lax.scan(step, e, r)
            return e - normal * jax.grad(divergence)(e), None

        return jax.lax.scan(round_, e, shifts)[0]

    return jax.vmap(one)(e)
