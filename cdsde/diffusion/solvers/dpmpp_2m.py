r"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), the ODE and the SDE.

With x̂ of solver.py, λ = ½ log ᾱ/(1-ᾱ), h = λ_p - λ_i, and x̂₋ and h₋ those of the step before,

    D = x̂ + h/(2 h₋) (x̂ - x̂₋)
    y ← √((1-ᾱ_p)/(1-ᾱ_i)) e^{-ηh} y + √ᾱ_p (1 - e^{-(1+η)h}) D + σ z,   σ² = (1-ᾱ_p) (1 - e^{-2ηh})

η = 0 is the exponential integrator of the probability-flow ODE, η = 1 that of the reverse SDE
(their SDE-DPM-Solver++(2M)). The first step takes D = x̂ and is DDIM's; the last one goes to x̂.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion.levels import Grid
from cdsde.diffusion.schedules import log_snr
from cdsde.diffusion.solvers.solver import Solver, guided_x0, option


class Coefficients(NamedTuple):
    """Of each step, float32 `[S]`.

    Attributes:
      h: λ_p - λ_i; 0 in the last step, where it would be infinite.
      eta: η.
    """

    h: Any
    eta: Any


def coefficients(grid: Grid, eta: float) -> Coefficients:
    """h and η of each step."""
    here = log_snr(grid.alpha_bar)
    following = log_snr(np.where(grid.last, grid.alpha_bar, grid.next_alpha_bar))
    return Coefficients(((following - here) / 2).astype(np.float32), option(eta, grid))


def _init(y):
    # x̂₋ and h₋: an infinite h₋ makes the first step one of first order.
    return jnp.zeros_like(y), jnp.full((), jnp.inf)


def _step(y, eps, guidance, at: Grid, c: Coefficients, z, memory):
    x0, _ = guided_x0(y, eps, guidance, at)
    previous, h_before = memory
    d = x0 + c.h / (2 * h_before) * (x0 - previous)
    shrink = jnp.sqrt((1 - at.next_alpha_bar) / (1 - at.alpha_bar)) * jnp.exp(-c.eta * c.h)
    std = jnp.sqrt((1 - at.next_alpha_bar) * -jnp.expm1(-2 * c.eta * c.h))
    moved = shrink * y - jnp.sqrt(at.next_alpha_bar) * jnp.expm1(-(1 + c.eta) * c.h) * d
    return jnp.where(at.last, x0, moved + std * z), (x0, c.h)


def dpmpp_2m(eta: float = 0.0) -> Solver:
    """The solver with η = `eta` (0: the ODE, 1: the SDE)."""
    return Solver(2, _step, lambda grid: coefficients(grid, eta), _init)
