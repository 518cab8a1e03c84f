r"""A step whose mean is replaced by a steered one, as in SDDM (Sun et al. 2023, algorithm 1).

The solver's mean is that of the posterior given the predicted clean image. A steered step is

    y ← S(y, mean(y)) + σ z                                                                   (1)

with the method's map S. Before it, at levels that ask for them, come moves without noise:
y ← S(y, mean(y)); the step itself then takes the mean of the last move, as the published code does.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cdsde.diffusion.solvers.solver import Solver, split


def make_step(
    solver: Solver,
    *,
    eps_fn: Callable,
    noise_fn: Callable,
    steer_fn: Callable,
    moves_fn: Callable,
    project_fn: Callable,
    clip: bool = False,
) -> Callable:
    """Builds one steered step, `(carry, row) -> carry`, as `reverse.make_step` does.

    Args:
      solver: one with a `posterior`.
      eps_fn, noise_fn, project_fn, clip: as for `reverse.make_step`.
      steer_fn: `(y, mean, i, level, extra) -> y`, the map S.
      moves_fn: `extra -> number of moves`.
    """
    posterior = solver.posterior
    assert posterior is not None, "methods check that their solver has one"

    def step(carry, row):
        y, memory = carry
        position, level, coefficients, extra = row
        i = level.index.astype(jnp.float32)

        def evaluate(y):
            """The mean of the step, and the factor of its deviation."""
            eps, widen = split(eps_fn(y, i), level)
            x0 = (y - level.exact_noise * eps) / jnp.sqrt(level.alpha_bar)  # rounded as published
            x0 = jnp.clip(x0, -1.0, 1.0) if clip else x0
            mean = posterior(y, x0, level, coefficients, jnp.zeros(()))
            return mean, jnp.broadcast_to(widen, mean.shape)

        def move(_, state):
            y, _, _ = state
            mean, widen = evaluate(y)
            return steer_fn(y, mean, i, level, extra), mean, widen

        mean, widen = evaluate(y)
        y, mean, widen = jax.lax.fori_loop(0, moves_fn(extra), move, (y, mean, widen))
        mean = steer_fn(y, mean, i, level, extra)
        zero = jnp.zeros(())
        z = widen * noise_fn(position, level.index)
        y = mean + posterior(zero, zero, level, coefficients, z)
        return project_fn(y, position, level), memory

    return step
