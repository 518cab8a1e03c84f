r"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140).

The levels i of a ladder get independent noises, which makes the noises of the steps larger and less
like white noise than those of sampling, so that they hold the image's structure:

    x_i = √ᾱ_i x_0 + √(1-ᾱ_i) n_i,   n_i ~ N(0, I)                                             (1)

The step of DDIM with η = 1 from i to the next lower level p then needs the shift σ z:

    σ z = x_p - μ(x_i, ε),   μ = √ᾱ_p (x_i - √(1-ᾱ_i) ε)/√ᾱ_i + √(1-ᾱ_p-σ²) ε
    σ² = (1-ᾱ_i/ᾱ_p) (1-ᾱ_p)/(1-ᾱ_i),   with ε of the source's text                            (2)

Replaying the shifts with ε of another text edits; with the same text, the image comes back. The
published code keeps z and drops that of the last step; a shift needs no division, and is kept for
the last step, so that the clean latent itself comes back.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cdsde.diffusion import schedules
from cdsde.editing.ddim import Ladder


def mean(x: jax.Array, eps: jax.Array, start, end) -> jax.Array:
    """μ of equation (2): from ᾱ `start` to the larger ᾱ `end`."""
    # √(1-ᾱ_p-σ²), of which the difference would lose digits where ᾱ_p is near 1.
    direction = (1 - end) * jnp.sqrt(start / (end * (1 - start)))
    return jnp.sqrt(end) * schedules.eps_to_x0(x, eps, start) + direction * eps


def noisy(z: jax.Array, noise: jax.Array, ladder: Ladder) -> jax.Array:
    """Equation (1) at the start of each move, `[N, B, h, w, C]`: z `[B, h, w, C]`, noise as (1)."""
    return jax.vmap(lambda n, level: schedules.perturb(z, n, level))(
        noise, jnp.asarray(ladder.start)
    )


def invert(
    z: jax.Array, noise: jax.Array, ladder: Ladder, eps_fn: Callable
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The state at the first level, and the shifts of equation (2).

    Each shift is computed from the state that the one before leads to, so that rounding does not
    add up.

    Args:
      z: `[B, h, w, C]`, the clean latents.
      noise: `[N, B, h, w, C]`, independent for each move.
      ladder: the moves down; its first ones may have been left out.
      eps_fn: `(x, t) -> eps` with the source's text.

    Returns:
      `(x [B, h, w, C], shifts [N, B, h, w, C], reconstruction [B, h, w, C])`.
    """
    states = noisy(z, noise, ladder)

    def body(x, row):
        (t, start, end), wanted = row
        middle = mean(x, eps_fn(x, t), start, end)
        shift = wanted - middle
        return middle + shift, shift

    rows = (Ladder(*map(jnp.asarray, ladder)), jnp.concatenate([states[1:], z[None]]))
    last, shifts = jax.lax.scan(body, states[0], rows)
    return states[0], shifts, last


def replay(x: jax.Array, shifts: jax.Array, ladder: Ladder, eps_fn: Callable) -> jax.Array:
    """The latents `[B, h, w, C]` at the ladder's end, from `invert`'s results and another ε."""

    def body(x, row):
        (t, start, end), shift = row
        return mean(x, eps_fn(x, t), start, end) + shift, None

    return jax.lax.scan(body, x, (Ladder(*map(jnp.asarray, ladder)), shifts))[0]
