"""Solvers of the guided reverse SDE, one per file; `reverse` runs them.

To add a solver, write a file that starts with its formula, and add its name to `SOLVERS` and
to the choices of `sample.solver` in `config/keys.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import numpy as np

from cdsde.diffusion import levels
from cdsde.diffusion.solvers.ancestral import ancestral
from cdsde.diffusion.solvers.ddim import ddim
from cdsde.diffusion.solvers.dpmpp_2m import dpmpp_2m
from cdsde.diffusion.solvers.reverse import frames, make_step, reverse, rows
from cdsde.diffusion.solvers.solver import Solver
from cdsde.diffusion.solvers.steered import make_step as make_steered_step

__all__ = [
    "SOLVERS",
    "Solver",
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "frames",
    "gain",
    "make",
    "make_steered_step",
    "make_step",
    "reverse",
    "rows",
]

SOLVERS: dict[str, Callable[..., Solver]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
}


def make(name: str, **options) -> Solver:
    """Builds a solver by name; options that it does not have are ignored.

    Raises:
      KeyError: no solver has this name.
    """
    known = inspect.signature(SOLVERS[name]).parameters
    return SOLVERS[name](**{key: value for key, value in options.items() if key in known})


def gain(solver: Solver, grid: levels.Grid) -> np.ndarray:
    """κ, the distance that a gradient of 1 moves the state in each step: float64 `[S]`, above 0."""
    columns = (grid, solver.coefficients(grid))
    memory, distances = solver.init(np.zeros(())), []
    for k in range(len(grid.index)):
        level, coefficients = jax.tree.map(lambda column, k=k: column[k], columns)
        distances.append(-float(solver.step(0.0, 0.0, 1.0, level, coefficients, 0.0, memory)[0]))
        _, memory = solver.step(0.0, 0.0, 0.0, level, coefficients, 0.0, memory)
    return np.array(distances)
