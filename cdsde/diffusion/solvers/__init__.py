"""Solvers of the guided reverse SDE, one a file; `reverse` runs them.

A new solver is a new file with its formula at its head, and one line here.
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

__all__ = [
    "SOLVERS",
    "Solver",
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "frames",
    "gain",
    "make",
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
    """The solver of this name with those of the options that it has."""
    known = inspect.signature(SOLVERS[name]).parameters
    return SOLVERS[name](**{key: value for key, value in options.items() if key in known})


def gain(solver: Solver, grid: levels.Grid) -> np.ndarray:
    """κ: how far a gradient of 1 moves the state in each step, float64 `[S]`, above 0."""
    columns = (grid, solver.coefficients(grid))
    memory, moved = solver.init(np.zeros(())), []
    for k in range(len(grid.index)):
        at, coefficients = jax.tree.map(lambda column, k=k: column[k], columns)
        moved.append(-float(solver.step(0.0, 0.0, 1.0, at, coefficients, 0.0, memory)[0]))
        _, memory = solver.step(0.0, 0.0, 0.0, at, coefficients, 0.0, memory)
    return np.array(moved)
