"""The guided reverse SDE as one `lax.scan` over noise levels.

The scan takes a step function and is independent of networks and methods. Memory does not grow with
the number of steps, unless states are kept. States are float32 `[B, H, W, C]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import levels, schedules
from cdsde.diffusion.solvers.solver import Solver, split


def make_step(
    solver: Solver,
    *,
    eps_fn: Callable,
    noise_fn: Callable,
    guidance_fn: Callable | None = None,
    project_fn: Callable | None = None,
    clip: bool = False,
) -> Callable:
    """Builds one step, `(carry, row) -> carry`.

    `carry` is `(y, memory)` and `row` is a row of `rows`; level stands for a row of the grid.

    Args:
      solver: moves the state.
      eps_fn: `(y, i) -> eps`, or `(eps, v)` with a learned variance (`solver.split`); the level
        index i is a float32 scalar.
      noise_fn: `(position, i) -> z [B, H, W, C]`, with the position of the step in the run.
      guidance_fn: `(y, i, level, extra) -> g`, the gradient of the weighted energies; None:
        unguided.
      project_fn: `(y, position, level) -> y`, applied after the step (ILVR).
      clip: clip the predicted clean image to [-1, 1] before the step. With few steps this keeps
        flat areas clean.
    """

    def step(carry, row):
        y, memory = carry
        position, level, coefficients, extra = row
        i = level.index.astype(jnp.float32)
        eps, widen = split(eps_fn(y, i), level)
        if clip:
            x0 = jnp.clip(schedules.eps_to_x0(y, eps, level.alpha_bar), -1.0, 1.0)
            eps = schedules.x0_to_eps(y, x0, level.alpha_bar)
        guidance = jnp.zeros(())
        if guidance_fn is not None:
            # The barrier runs the networks in sequence; in parallel they compete for a CPU's cache.
            eps, state = jax.lax.optimization_barrier((eps, y))
            guidance = guidance_fn(state, i, level, extra)
        z = widen * noise_fn(position, level.index)
        y, memory = solver.step(y, eps, guidance, level, coefficients, z, memory)
        if project_fn is not None:
            y = project_fn(y, position, level)
        return y, memory

    return step


def rows(grid: levels.Grid, coefficients: Any, extra: Any = None) -> tuple:
    """The input of the scan: `(position, grid, coefficients, extra)`, arrays `[S, ...]`."""
    return np.arange(len(grid.index)), grid, coefficients, extra


def reverse(step: Callable, carry: tuple, rows: tuple, keep: int = 0):
    """Runs the reverse SDE down all levels.

    Args:
      step: the result of `make_step`.
      carry: `(y, solver.init(y))` at the first level.
      rows: the result of `rows`.
      keep: number of states to return, evenly spaced, including the last; clipped to the number of
        steps.

    Returns:
      `(y, states)`: the last state `[B, H, W, C]`, and the kept states `[keep, B, H, W, C]` or None
      where `keep` is 0.
    """
    steps = len(rows[0])
    keep = min(keep, steps)
    slots = jnp.asarray(frames(steps, keep))

    def body(state, row):
        carry, kept = state
        carry = step(carry, row)
        if keep:
            # Steps that are not kept write to an extra slot, which is dropped at the end.
            kept = kept.at[slots[row[0]]].set(carry[0])
        return (carry, kept), None

    y = carry[0]
    kept = jnp.zeros((keep + 1, *y.shape), y.dtype) if keep else None
    ((y, _), kept), _ = jax.lax.scan(body, (carry, kept), rows)
    return y, None if kept is None else kept[:-1]


def frames(steps: int, number: int) -> np.ndarray:
    """Frame slot of each step, `[steps]`; `number` marks a step that is not kept.

    Frames are evenly spaced, and the last frame is the last step. `number` is at most `steps`.
    """
    slots = np.full(steps, number, np.int32)
    kept = np.round(np.linspace(0, steps, number + 1)[1:]).astype(int) - 1
    slots[kept] = np.arange(number)
    return slots
