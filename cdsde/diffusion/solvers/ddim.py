r"""DDIM (Song et al. 2021, equation 12), guided by a shift of the predicted noise.

With ε' and x̂ as in solver.py, β = 1 - ᾱ_i/ᾱ_p and η from 0 (deterministic) to 1 (ancestral),

    y ← √ᾱ_p x̂ + √(1-ᾱ_p-σ²) ε' + σ z,   σ² = η² β (1-ᾱ_p)/(1-ᾱ_i)

η = 1 gives the ancestral step with "fixedsmall". In the last step ᾱ_p = 1, so σ = 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from cdsde.diffusion import schedules
from cdsde.diffusion.levels import Grid
from cdsde.diffusion.solvers.solver import Solver, guided_x0, option


def _step(y, eps, guidance, level: Grid, eta, z, memory):
    return _next(*guided_x0(y, eps, guidance, level), level, eta, z), memory


def _posterior(y, x0, level: Grid, eta, z):
    return _next(x0, schedules.x0_to_eps(y, x0, level.alpha_bar), level, eta, z)


def _next(x0, eps, level: Grid, eta, z):
    variance = eta**2 * level.beta * (1 - level.next_alpha_bar) / (1 - level.alpha_bar)
    direction = jnp.sqrt(jnp.maximum(1 - level.next_alpha_bar - variance, 0.0))
    return jnp.sqrt(level.next_alpha_bar) * x0 + direction * eps + jnp.sqrt(variance) * z


def ddim(eta: float = 0.0) -> Solver:
    """DDIM with η = `eta`, a solver of order 1."""
    return Solver(
        1, _step, lambda grid: option(eta, grid), lambda grid: option(1.0, grid), _posterior
    )
