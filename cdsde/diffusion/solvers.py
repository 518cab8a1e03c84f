r"""The reverse SDE as one `lax.scan` over noise levels, guided by energies and projected.

One step goes from level i to the next lower one, p (p = i-1 when every level is taken). With
β = 1 - ᾱ_i/ᾱ_p, g = Σ_k λ_k ∇_y E_k(y, x_i, i) and z ~ N(0, I):

    ancestral   y ← (y - β/√(1-ᾱ_i) ε) / √(1-β) - β/√(1-β) g + σ z                              (1)
                σ² = β (1-ᾱ_p)/(1-ᾱ_i)  "fixedsmall",   σ² = β  "fixedlarge"
    DDIM        ε' = ε + √(1-ᾱ_i) g,  x̂ = (y - √(1-ᾱ_i) ε') / √ᾱ_i                              (2)
                y ← √ᾱ_p x̂ + √(1-ᾱ_p-σ²) ε' + σ z,   σ² = η² β (1-ᾱ_p)/(1-ᾱ_i)

    DPM-Solver++(2M)  with x̂₋ and h₋ those of the step before, λ = ½ log ᾱ/(1-ᾱ), h = λ_p - λ_i:
                D = x̂ + h/(2 h₋) (x̂ - x̂₋)
                y ← √((1-ᾱ_p)/(1-ᾱ_i)) e^{-ηh} y + √ᾱ_p (1 - e^{-(1+η)h}) D + σ z,               (3)
                σ² = (1-ᾱ_p) (1 - e^{-2ηh})

and no noise in the last step, to ᾱ_p = 1. (1) with every level is the step of EGSDE (Zhao et al.
2022, algorithm 1) and, without energies, of DDPM; (2) with η = 1 is (1) with fixedsmall, since
guidance is a shift of the score in all of them. (3) is the exponential integrator of Lu et al.
2022 (DPM-Solver++, algorithm 2) for the probability-flow ODE with η = 0 and, with η = 1, for the
reverse SDE (their SDE-DPM-Solver++(2M)); of second order in h, since it extrapolates x̂ from the
step before. Without that (D = x̂: its first step, and its last) it is (2). States are float32
`[B, H, W, C]`.

The solver knows nothing of networks or methods: it is handed `eps_fn(y, i)`, `guidance_fn` and
`project_fn`. Memory does not grow with the number of steps unless `trace` asks for every state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import schedules


class Grid(NamedTuple):
    """The noise levels of a run and the coefficients of its steps, each `[S]`, first step first.

    Attributes:
      index: i, int32, decreasing to 0.
      last: whether this is the last step (to clean).
      alpha_bar, next_alpha_bar: ᾱ_i and ᾱ_p (1 after the last step).
      beta: β of the step.
      posterior_std: σ of the chosen variance, 0 in the last step.
      h: λ_p - λ_i of (3); 0 in the last step, where it would be infinite.
    """

    index: Any
    last: Any
    alpha_bar: Any
    next_alpha_bar: Any
    beta: Any
    posterior_std: Any
    h: Any


def indices(start: int, steps: int | None = None, log_snr: np.ndarray | None = None) -> np.ndarray:
    """The levels visited: start-1 … 0, all of them or `steps` spaced ones.

    Args:
      start: M, the number of levels below the start.
      steps: network evaluations; None takes every level.
      log_snr: `[T]`, decreasing, log ᾱ/(1-ᾱ): levels are evenly spaced in it (as far as there are
        levels), which is denser at low noise; None: evenly spaced in the index.

    Raises:
      ValueError: steps outside 1 … start.
    """
    steps = start if steps is None else steps
    if not 1 <= steps <= start:
        raise ValueError(f"steps is {steps}; it must lie in 1..{start}, the start level")
    if steps == 1:
        return np.array([start - 1])
    if log_snr is None:
        return np.round(np.linspace(start - 1, 0, steps)).astype(np.int32)
    wanted = np.linspace(log_snr[start - 1], log_snr[0], steps)
    i = np.round(np.interp(-wanted, -log_snr[:start], np.arange(start))).astype(np.int32)
    # At low noise neighbouring levels are farther apart than the spacing: one after the other then.
    floor = np.arange(steps - 1, -1, -1)
    i = floor + np.maximum.accumulate((i - floor)[::-1])[::-1]
    return np.minimum(i, start - 1 - np.arange(steps)).astype(np.int32)


def make_grid(
    schedule: schedules.Schedule,
    start: int,
    steps: int | None = None,
    variance: str = "fixedsmall",
    spacing: str = "index",
) -> Grid:
    """Coefficients for the levels of `indices(start, steps)`; float32 tables.

    Where every level is taken, β is the schedule's own (not 1 - ᾱ_i/ᾱ_p, which would round).
    `spacing` is "index" or "log_snr": in what the levels are evenly spaced.
    """
    log_snr = schedule.log_snr
    i = indices(start, steps, {"index": None, "log_snr": log_snr}[spacing]).astype(np.int32)
    following = np.append(i[1:], -1)
    alpha_bar = schedule.alpha_bar[i]
    next_alpha_bar = np.where(following >= 0, schedule.alpha_bar[following], np.float32(1))
    jump = 1 - alpha_bar.astype(np.float64) / next_alpha_bar.astype(np.float64)
    beta = np.where(i - following == 1, schedule.beta[i], jump.astype(np.float32))
    small = beta * (1 - next_alpha_bar) / (1 - alpha_bar)
    # Clipped before the logarithm, as the published tables are.
    squared = {"fixedsmall": np.maximum(small, np.float32(1e-20)), "fixedlarge": beta}[variance]
    std = np.exp(0.5 * np.log(squared)) * (following >= 0)
    h = np.where(following >= 0, log_snr[following] - log_snr[i], 0) / 2
    tables = (alpha_bar, next_alpha_bar, beta, std.astype(np.float32), h.astype(np.float32))
    return Grid(i, following < 0, *tables)


class Solver(NamedTuple):
    """A way to take one step.

    Attributes:
      step: `(y, eps, guidance, row of the grid, z, memory) -> (y, memory)`; z is fresh noise.
      init: `y -> memory` before the first step; what multistep solvers know of earlier steps.
    """

    step: Callable
    init: Callable = lambda y: ()


def _ancestral(y, eps, guidance, at: Grid, z, memory):
    alpha = 1 - at.beta
    mean = (y - at.beta / jnp.sqrt(1 - at.alpha_bar) * eps) / jnp.sqrt(alpha)
    return mean - at.beta / jnp.sqrt(alpha) * guidance + at.posterior_std * z, memory


ancestral = Solver(_ancestral)  # equation (1)


def _guided_x0(y, eps, guidance, at: Grid):
    """x̂ and ε' of equation (2)."""
    noise = jnp.sqrt(1 - at.alpha_bar)
    eps = eps + noise * guidance
    return (y - noise * eps) / jnp.sqrt(at.alpha_bar), eps


def ddim(eta=0.0) -> Solver:
    """Equation (2) with η = `eta` (0: deterministic, 1: ancestral)."""

    def step(y, eps, guidance, at: Grid, z, memory):
        x0, eps = _guided_x0(y, eps, guidance, at)
        variance = eta**2 * at.beta * (1 - at.next_alpha_bar) / (1 - at.alpha_bar)
        direction = jnp.sqrt(jnp.maximum(1 - at.next_alpha_bar - variance, 0.0))
        y = jnp.sqrt(at.next_alpha_bar) * x0 + direction * eps + jnp.sqrt(variance) * z
        return y, memory

    return Solver(step)


def dpmpp_2m(eta=0.0) -> Solver:
    """Equation (3), DPM-Solver++(2M) with η = `eta` (0: the ODE, 1: the SDE)."""

    def init(y):
        # x̂₋ and h₋: an infinite h₋ makes the first step one of first order.
        return jnp.zeros_like(y), jnp.full((), jnp.inf)

    def step(y, eps, guidance, at: Grid, z, memory):
        x0, _ = _guided_x0(y, eps, guidance, at)
        previous, h_before = memory
        d = x0 + at.h / (2 * h_before) * (x0 - previous)
        shrink = jnp.sqrt((1 - at.next_alpha_bar) / (1 - at.alpha_bar)) * jnp.exp(-eta * at.h)
        std = jnp.sqrt((1 - at.next_alpha_bar) * -jnp.expm1(-2 * eta * at.h))
        moved = shrink * y - jnp.sqrt(at.next_alpha_bar) * jnp.expm1(-(1 + eta) * at.h) * d
        return jnp.where(at.last, x0, moved + std * z), (x0, at.h)

    return Solver(step, init)


def gain(solver: Solver, grid: Grid) -> np.ndarray:
    """How far a gradient of 1 moves the state in each step, float64 `[S]`, above 0.

    Of (1) it is β/√(1-β); of the others it follows from x̂.
    """
    memory, moved = solver.init(jnp.zeros(())), []
    for row in zip(*grid, strict=True):
        moved.append(-float(solver.step(0.0, 0.0, 1.0, Grid(*row), 0.0, memory)[0]))
        _, memory = solver.step(0.0, 0.0, 0.0, Grid(*row), 0.0, memory)
    return np.array(moved)


def reverse(
    y: jax.Array,
    grid: Grid,
    *,
    eps_fn: Callable,
    solver: Solver,
    noise_fn: Callable,
    guidance_fn: Callable | None = None,
    project_fn: Callable | None = None,
    per_step: Any = None,
    clip: bool = False,
    trace: bool | int = False,
    count: jax.Array | None = None,
    watch: Callable | None = None,
):
    """Solve the reverse SDE from y down the grid.

    Args:
      y: `[B, H, W, C]` the state at the first level.
      grid: the levels.
      eps_fn: `(y, i) -> eps`, i a float32 scalar index.
      solver: `ancestral`, `ddim(eta)` or `dpmpp_2m(eta)`.
      noise_fn: `(position of the step, i) -> z [B, H, W, C]`, called once a step.
      guidance_fn: `(y, i, extra) -> g`, the gradient of the weighted energies; None: unguided.
      project_fn: `(y, row of the grid, extra) -> y`, applied after each step (ILVR).
      per_step: tree of arrays `[S, ...]` (weights λ_k(i), pre-drawn noise); `extra` is its row.
      clip: clip the predicted clean image to [-1, 1] before the step. The published code does not;
        with few steps it keeps flat areas clean.
      trace: also return every state, `[S, B, H, W, C]`, or so many of them, evenly spaced and the
        last one among them.
      count: how many of the grid's rows are steps, a traced number; the rest, which only fill it
        up, cost nothing. None: all.
      watch: `(position, y)` is called with every state on the host, while the solver goes on.

    Returns:
      `(y, states)`; states is None unless `trace`.
    """

    def body(carry, row):
        y, memory = carry
        position, at, extra = row
        i = at.index.astype(jnp.float32)
        eps = eps_fn(y, i)
        if clip:
            x0 = jnp.clip(schedules.eps_to_x0(y, eps, at.alpha_bar), -1.0, 1.0)
            eps = schedules.x0_to_eps(y, x0, at.alpha_bar)
        guidance = jnp.zeros(())
        if guidance_fn is not None:
            # One network after the other: side by side they take each other's cache on a CPU.
            eps, at_y = jax.lax.optimization_barrier((eps, y))
            guidance = guidance_fn(at_y, i, extra)
        z = noise_fn(position, at.index)
        y, memory = solver.step(y, eps, guidance, at, z, memory)
        if project_fn is not None:
            y = project_fn(y, at, extra)
        if watch is not None:
            jax.debug.callback(watch, position, y)
        return y, memory

    def some(carry, row):
        if count is None:
            return body(carry, row)
        return jax.lax.cond(row[0] < count, body, lambda carry, row: carry, carry, row)

    def keeping(carry, row):
        carry, kept = carry
        carry = some(carry, row)
        if number:
            # Steps between two kept ones write to the place that is cut off at the end.
            kept = kept.at[slots[row[0]]].set(carry[0])
        return (carry, kept), None

    grid = Grid(*map(jnp.asarray, grid))
    size = len(grid.index)
    number = size if trace is True else min(int(trace), size)
    slots = jnp.asarray(frames(size, number))
    kept = jnp.zeros((number + 1, *y.shape), y.dtype) if number else None
    rows = (jnp.arange(size), grid, per_step)
    ((y, _), kept), _ = jax.lax.scan(keeping, ((y, solver.init(y)), kept), rows)
    return y, kept[:-1] if number else None


def frames(steps: int, number: int) -> np.ndarray:
    """For each of `steps` steps which of `number` frames it is; `number` itself where none.

    Frames are evenly spaced, the last one is the last step; of fewer steps than frames each step is
    one, and the first frames stay empty.
    """
    slots = np.full(steps, number, np.int32)
    kept = np.round(np.linspace(0, steps, number + 1)[1:]).astype(int) - 1
    kept = np.unique(kept[kept >= 0])[-number:]
    slots[kept] = np.arange(number - len(kept), number)
    return slots


SOLVERS = {"ancestral": lambda eta: ancestral, "ddim": ddim, "dpmpp_2m": dpmpp_2m}
