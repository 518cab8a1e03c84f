r"""The ancestral step of DDPM (Ho et al. 2020), guided as in EGSDE (Zhao et al. 2022, algorithm 1).

With β = 1 - ᾱ_i/ᾱ_p and g the gradient of the weighted energies,

    y ← (y - β/√(1-ᾱ_i) ε) / √(1-β) - β/√(1-β) g + σ z
    σ² = β (1-ᾱ_p)/(1-ᾱ_i)  "fixedsmall",   σ² = β  "fixedlarge",   σ = 0 in the last step
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion.levels import Grid
from cdsde.diffusion.solvers.solver import Solver


def posterior_std(grid: Grid, variance: str) -> np.ndarray:
    """σ of each step, float32 `[S]`, for a `variance` of `ancestral`."""
    small = grid.beta * (1 - grid.next_alpha_bar) / (1 - grid.alpha_bar)
    # Clipped before the logarithm, as in the published code.
    small = np.maximum(small, np.float32(1e-20))
    squared = grid.beta if variance == "fixedlarge" else small
    return (np.exp(0.5 * np.log(squared)) * ~grid.last).astype(np.float32)


class Coefficients(NamedTuple):
    """σ, and the weights of the clean image and the state in the posterior's mean, `[S]` each."""

    std: Any
    of_clean: Any
    of_state: Any


def coefficients(grid: Grid, variance: str) -> Coefficients:
    """The numbers of each step; the posterior is q(x_p | x_i, x0) (Ho et al. 2020, equation 7)."""
    now, following = (np.asarray(a, np.float64) for a in (grid.alpha_bar, grid.next_alpha_bar))
    beta = 1 - now / following
    of_clean = np.sqrt(following) * beta / (1 - now)
    of_state = np.sqrt(1 - beta) * (1 - following) / (1 - now)
    exact = (of_clean.astype(np.float32), of_state.astype(np.float32))
    return Coefficients(posterior_std(grid, variance), *exact)


def _step(y, eps, guidance, level: Grid, c: Coefficients, z, memory):
    alpha = 1 - level.beta
    mean = (y - level.beta / jnp.sqrt(1 - level.alpha_bar) * eps) / jnp.sqrt(alpha)
    return mean - level.beta / jnp.sqrt(alpha) * guidance + c.std * z, memory


def _posterior(y, x0, level: Grid, c: Coefficients, z):
    return c.of_clean * x0 + c.of_state * y + c.std * z


def ancestral(variance: str = "fixedsmall") -> Solver:
    """The ancestral solver, of order 1.

    `variance` is "fixedsmall", "fixedlarge", or "learned", where the network's output widens the
    noise of "fixedsmall" (`solver.split`).
    """
    numbers = lambda grid: coefficients(grid, variance)  # noqa: E731
    return Solver(1, _step, numbers, numbers, _posterior)
