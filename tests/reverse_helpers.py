"""Running a solver on small images with functions in place of networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import schedules, solvers
from cdsde.diffusion.levels import make_grid as grid_of

SCHEDULE = schedules.linear()
IMAGES = (2, 8, 8, 3)
make_grid = functools.partial(grid_of, SCHEDULE)


def go_down(y, grid, solver, eps_fn, noise_fn, extra=None, keep=0, **options):
    """`(y, states)` at the end of a grid; `options` are those of `solvers.make_step`."""
    step = solvers.make_step(solver, eps_fn=eps_fn, noise_fn=noise_fn, **options)
    rows = solvers.rows(grid, solver.coefficients(grid), extra)

    @jax.jit
    def run(y, rows):
        return solvers.reverse(step, (y, solver.init(y)), rows, keep)

    return run(y, rows)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def some_eps(y, i):
    return jnp.tanh(y + i / 500)


def some_guidance(y, i, at, extra):
    return 3 * jnp.sin(2 * y)


def run_images(grid, solver, guidance_fn=some_guidance, eps_fn=some_eps, **options):
    """`go_down` of two images from noise, with noise that belongs to the step."""
    z = jnp.asarray(normal(1, len(grid.index), *IMAGES))
    noise_fn = lambda position, i: z[position]  # noqa: E731
    y = jnp.asarray(normal(0, *IMAGES))
    return go_down(y, grid, solver, eps_fn, noise_fn, guidance_fn=guidance_fn, **options)
