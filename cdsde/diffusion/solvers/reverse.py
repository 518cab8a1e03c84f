"""The guided reverse SDE as one `lax.scan` over noise levels.

The scan knows nothing of networks or methods: it is handed a step. Memory does not grow with the
number of steps unless states are kept. States are float32 `[B, H, W, C]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import levels, schedules
from cdsde.diffusion.solvers.solver import Solver


def make_step(
    solver: Solver,
    *,
    eps_fn: Callable,
    noise_fn: Callable,
    guidance_fn: Callable | None = None,
    project_fn: Callable | None = None,
    clip: bool = False,
) -> Callable:
    """`(carry, row) -> carry`, one step; `carry` is `(y, memory)`, `row` one of `rows`.

    Args:
      solver: how the state moves.
      eps_fn: `(y, i) -> eps`, i a float32 scalar index.
      noise_fn: `(position of the step, i) -> z [B, H, W, C]`.
      guidance_fn: `(y, i, row of the grid, extra) -> g`, the gradient of the weighted energies;
        None: unguided.
      project_fn: `(y, position, row of the grid) -> y`, applied after the step (ILVR).
      clip: clip the predicted clean image to [-1, 1] before the step. With few steps this keeps
        flat areas clean.
    """

    def step(carry, row):
        y, memory = carry
        position, at, coefficients, extra = row
        i = at.index.astype(jnp.float32)
        eps = eps_fn(y, i)
        if clip:
            x0 = jnp.clip(schedules.eps_to_x0(y, eps, at.alpha_bar), -1.0, 1.0)
            eps = schedules.x0_to_eps(y, x0, at.alpha_bar)
        guidance = jnp.zeros(())
        if guidance_fn is not None:
            # One network after the other: side by side they take each other's cache on a CPU.
            eps, at_y = jax.lax.optimization_barrier((eps, y))
            guidance = guidance_fn(at_y, i, at, extra)
        z = noise_fn(position, at.index)
        y, memory = solver.step(y, eps, guidance, at, coefficients, z, memory)
        if project_fn is not None:
            y = project_fn(y, position, at)
        return y, memory

    return step


def rows(grid: levels.Grid, coefficients: Any, extra: Any = None) -> tuple:
    """What the scan goes over: `(position, grid, coefficients, extra)`, arrays `[S, ...]`."""
    return np.arange(len(grid.index)), grid, coefficients, extra


def reverse(step: Callable, carry: tuple, rows: tuple, keep: int = 0):
    """Go down all levels.

    Args:
      step: `make_step`.
      carry: `(y, solver.init(y))` at the first level.
      rows: `rows`.
      keep: how many states are returned, evenly spaced, the last one among them; at most the
        number of steps.

    Returns:
      `(y, states)`; states is `[keep, B, H, W, C]`, None where `keep` is 0.
    """
    steps = len(rows[0])
    keep = min(keep, steps)
    slots = jnp.asarray(frames(steps, keep))

    def body(state, row):
        carry, kept = state
        carry = step(carry, row)
        if keep:
            # Steps between two kept ones write to the slot that is cut off at the end.
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
