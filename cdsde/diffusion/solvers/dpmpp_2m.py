r"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) for the ODE and the SDE.

With x̂ as in solver.py, λ = ½ log ᾱ/(1-ᾱ), h = λ_p - λ_i, and x̂₋, h₋ from the previous step,

    D = x̂ + h/(2 h₋) (x̂ - x̂₋)
    y ← √((1-ᾱ_p)/(1-ᾱ_i)) e^{-ηh} y + √ᾱ_p (1 - e^{-(1+η)h}) D + σ z,   σ² = (1-ᾱ_p) (1 - e^{-2ηh})

η = 0 is the exponential integrator of the probability-flow ODE, η = 1 that of the reverse SDE
(SDE-DPM-Solver++(2M)). The first step has D = x̂, which is a DDIM step; the last step returns x̂.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion.levels import Grid
from cdsde.diffusion.schedules import log_snr
from cdsde.diffusion.solvers.solver import Solver, guided_x0, option


class Coefficients(NamedTuple):
    """The coefficients of each step, float32 `[S]`.

    Attributes:
      h: λ_p - λ_i; 0 in the last step, where the true value is infinite.
      eta: η.
    """

    h: Any
    eta: Any


def coefficients(grid: Grid, eta: float) -> Coefficients:
    """h and η of each step."""
    current = log_snr(grid.alpha_bar)
    following = log_snr(np.where(grid.last, grid.alpha_bar, grid.next_alpha_bar))
    return Coefficients(((following - current) / 2).astype(np.float32), option(eta, grid))


def _init(y):
    # x̂₋ and h₋; with an infinite h₋ the first step has order 1.
    return jnp.zeros_like(y), jnp.full((), jnp.inf)


def _step(y, eps, guidance, level: Grid, c: Coefficients, z, memory):
    x0, _ = guided_x0(y, eps, guidance, level)
    previous_x0, previous_h = memory
    d = x0 + c.h / (2 * previous_h) * (x0 - previous_x0)
    shrink = jnp.sqrt((1 - level.next_alpha_bar) / (1 - level.alpha_bar)) * jnp.exp(-c.eta * c.h)
    std = jnp.sqrt((1 - level.next_alpha_bar) * -jnp.expm1(-2 * c.eta * c.h))
    mean = shrink * y - jnp.sqrt(level.next_alpha_bar) * jnp.expm1(-(1 + c.eta) * c.h) * d
    return jnp.where(level.last, x0, mean + std * z), (x0, c.h)


def dpmpp_2m(eta: float = 0.0) -> Solver:
    """DPM-Solver++(2M) with η = `eta` (0: the ODE, 1: the SDE), a solver of order 2."""
    options, sde = (lambda grid, value=value: coefficients(grid, value) for value in (eta, 1.0))
    return Solver(2, _step, options, sde, init=_init)
