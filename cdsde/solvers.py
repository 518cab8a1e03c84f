r"""The reverse SDE as one `lax.scan` over noise levels, guided by energies and projected.

One step goes from level i to the next lower one, p (p = i-1 when every level is taken). With
β = 1 - ᾱ_i/ᾱ_p, g = Σ_k λ_k ∇_y E_k(y, x_i, i) and z ~ N(0, I):

    ancestral   y ← (y - β/√(1-ᾱ_i) ε) / √(1-β) - β/√(1-β) g + σ z                              (1)
                σ² = β (1-ᾱ_p)/(1-ᾱ_i)  "fixedsmall",   σ² = β  "fixedlarge"
    DDIM        ε' = ε + √(1-ᾱ_i) g,  x̂ = (y - √(1-ᾱ_i) ε') / √ᾱ_i                              (2)
                y ← √ᾱ_p x̂ + √(1-ᾱ_p-σ²) ε' + σ z,   σ² = η² β (1-ᾱ_p)/(1-ᾱ_i)

and no noise in the last step, to ᾱ_p = 1. (1) with every level is the step of EGSDE (Zhao et al.
2022, algorithm 1) and, without energies, of DDPM; (2) with η = 1 is (1) with fixedsmall, since
guidance is a shift of the score in both. States are float32 `[B, H, W, C]`.

The solver knows nothing of networks or methods: it is handed `eps_fn(y, i)`, `guidance_fn` and
`project_fn`. Memory does not grow with the number of steps unless `trace` asks for every state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde import sde


class Grid(NamedTuple):
    """The noise levels of a run and the coefficients of its steps, each `[S]`, first step first.

    Attributes:
      index: i, int32, decreasing to 0.
      last: whether this is the last step (to clean).
      alpha_bar, next_alpha_bar: ᾱ_i and ᾱ_p (1 after the last step).
      beta: β of the step.
      posterior_std: σ of the chosen variance, 0 in the last step.
    """

    index: Any
    last: Any
    alpha_bar: Any
    next_alpha_bar: Any
    beta: Any
    posterior_std: Any


def indices(start: int, steps: int | None = None) -> np.ndarray:
    """The levels visited: start-1 … 0, all of them or `steps` evenly spaced ones.

    Args:
      start: M, the number of levels below the start.
      steps: network evaluations; None takes every level.

    Raises:
      ValueError: steps outside 1 … start.
    """
    steps = start if steps is None else steps
    if not 1 <= steps <= start:
        raise ValueError(f"steps is {steps}; it must lie in 1..{start}, the start level")
    if steps == 1:
        return np.array([start - 1])
    return np.round(np.linspace(start - 1, 0, steps)).astype(np.int32)


def make_grid(
    schedule: sde.Schedule,
    start: int,
    steps: int | None = None,
    variance: str = "fixedsmall",
) -> Grid:
    """Coefficients for the levels of `indices(start, steps)`; float32 tables.

    Where every level is taken, β is the schedule's own (not 1 - ᾱ_i/ᾱ_p, which would round).
    """
    i = indices(start, steps).astype(np.int32)
    following = np.append(i[1:], -1)
    alpha_bar = schedule.alpha_bar[i]
    next_alpha_bar = np.where(following >= 0, schedule.alpha_bar[following], np.float32(1))
    jump = 1 - alpha_bar.astype(np.float64) / next_alpha_bar.astype(np.float64)
    beta = np.where(i - following == 1, schedule.beta[i], jump.astype(np.float32))
    small = beta * (1 - next_alpha_bar) / (1 - alpha_bar)
    # Clipped before the logarithm, as the published tables are.
    squared = {"fixedsmall": np.maximum(small, np.float32(1e-20)), "fixedlarge": beta}[variance]
    std = np.exp(0.5 * np.log(squared)) * (following >= 0)
    return Grid(i, following < 0, alpha_bar, next_alpha_bar, beta, std.astype(np.float32))


Step = Callable[[jax.Array, jax.Array, jax.Array, Grid, jax.Array], jax.Array]


def ancestral(y, eps, guidance, at: Grid, z):
    """Equation (1): `(y, eps, guidance, one row of the grid, fresh noise) -> y`."""
    alpha = 1 - at.beta
    mean = (y - at.beta / jnp.sqrt(1 - at.alpha_bar) * eps) / jnp.sqrt(alpha)
    return mean - at.beta / jnp.sqrt(alpha) * guidance + at.posterior_std * z


def ddim(eta=0.0) -> Step:
    """Equation (2) with η = `eta` (0: deterministic, 1: ancestral)."""

    def step(y, eps, guidance, at: Grid, z):
        noise = jnp.sqrt(1 - at.alpha_bar)
        eps = eps + noise * guidance
        x0 = (y - noise * eps) / jnp.sqrt(at.alpha_bar)
        variance = eta**2 * at.beta * (1 - at.next_alpha_bar) / (1 - at.alpha_bar)
        direction = jnp.sqrt(jnp.maximum(1 - at.next_alpha_bar - variance, 0.0))
        return jnp.sqrt(at.next_alpha_bar) * x0 + direction * eps + jnp.sqrt(variance) * z

    return step


def reverse(
    y: jax.Array,
    grid: Grid,
    *,
    eps_fn: Callable,
    step: Step,
    noise_fn: Callable,
    guidance_fn: Callable | None = None,
    project_fn: Callable | None = None,
    per_step: Any = None,
    clip: bool = False,
    trace: bool = False,
):
    """Solve the reverse SDE from y down the grid.

    Args:
      y: `[B, H, W, C]` the state at the first level.
      grid: the levels.
      eps_fn: `(y, i) -> eps`, i a float32 scalar index.
      step: `ancestral` or `ddim(eta)`.
      noise_fn: `(position of the step, i) -> z [B, H, W, C]`, called once a step.
      guidance_fn: `(y, i, extra) -> g`, the gradient of the weighted energies; None: unguided.
      project_fn: `(y, row of the grid, extra) -> y`, applied after each step (ILVR).
      per_step: tree of arrays `[S, ...]` (weights λ_k(i), pre-drawn noise); `extra` is its row.
      clip: clip the predicted clean image to [-1, 1] before the step. The published code does not;
        with few steps it keeps flat areas clean.
      trace: also return every state, `[S, B, H, W, C]`.

    Returns:
      `(y, states)`; states is None unless `trace`.
    """

    def body(y, row):
        position, at, extra = row
        i = at.index.astype(jnp.float32)
        eps = eps_fn(y, i)
        if clip:
            x0 = jnp.clip(sde.eps_to_x0(y, eps, at.alpha_bar), -1.0, 1.0)
            eps = sde.x0_to_eps(y, x0, at.alpha_bar)
        guidance = jnp.zeros(()) if guidance_fn is None else guidance_fn(y, i, extra)
        y = step(y, eps, guidance, at, noise_fn(position, at.index))
        if project_fn is not None:
            y = project_fn(y, at, extra)
        return y, (y if trace else None)

    grid = Grid(*map(jnp.asarray, grid))
    rows = (jnp.arange(len(grid.index)), grid, per_step)
    return jax.lax.scan(body, y, rows)


SOLVERS = {"ancestral": lambda eta: ancestral, "ddim": ddim}
