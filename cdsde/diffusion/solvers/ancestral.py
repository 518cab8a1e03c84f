r"""The ancestral step of DDPM (Ho et al. 2020), guided as in EGSDE (Zhao et al. 2022, algorithm 1).

With β = 1 - ᾱ_i/ᾱ_p and g the gradient of the weighted energies,

    y ← (y - β/√(1-ᾱ_i) ε) / √(1-β) - β/√(1-β) g + σ z
    σ² = β (1-ᾱ_p)/(1-ᾱ_i)  "fixedsmall",   σ² = β  "fixedlarge",   σ = 0 in the last step
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion.levels import Grid
from cdsde.diffusion.solvers.solver import Solver


def posterior_std(grid: Grid, variance: str) -> np.ndarray:
    """σ of each step, float32 `[S]`, for the variance "fixedsmall" or "fixedlarge"."""
    small = grid.beta * (1 - grid.next_alpha_bar) / (1 - grid.alpha_bar)
    # Clipped before the logarithm, as in the published code.
    squared = {"fixedsmall": np.maximum(small, np.float32(1e-20)), "fixedlarge": grid.beta}
    return (np.exp(0.5 * np.log(squared[variance])) * ~grid.last).astype(np.float32)


def _step(y, eps, guidance, level: Grid, std, z, memory):
    alpha = 1 - level.beta
    mean = (y - level.beta / jnp.sqrt(1 - level.alpha_bar) * eps) / jnp.sqrt(alpha)
    return mean - level.beta / jnp.sqrt(alpha) * guidance + std * z, memory


def _posterior(y, x0, level: Grid, std, z):
    # The mean of q(x_p | x_i, x0) (Ho et al. 2020, equation 7).
    noise = 1 - level.alpha_bar
    of_clean = jnp.sqrt(level.next_alpha_bar) * level.beta / noise
    of_state = jnp.sqrt(1 - level.beta) * (1 - level.next_alpha_bar) / noise
    return of_clean * x0 + of_state * y + std * z


def ancestral(variance: str = "fixedsmall") -> Solver:
    """The ancestral solver, of order 1; `variance` is "fixedsmall" or "fixedlarge"."""
    std = lambda grid: posterior_std(grid, variance)  # noqa: E731
    return Solver(1, _step, std, std, _posterior)
