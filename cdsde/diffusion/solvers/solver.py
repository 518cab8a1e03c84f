"""What a solver of the reverse SDE is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import levels


class Solver(NamedTuple):
    """A way to take one step from level i to the next lower one, p.

    Attributes:
      order: q; the error of a run falls by 2^q where the steps are halved.
      step: `(y, eps, guidance, at, c, z, memory) -> (y, memory)`: y the state and eps the predicted
        noise, both `[B, H, W, C]`, guidance the gradient of the weighted energies, at a row of the
        grid, c a row of the coefficients, z ~ N(0, I).
      coefficients: `grid -> tree of arrays [S]`, what the step needs beside the grid, on the host.
        The solver's options are in there, so that they change without compiling again.
      init: `y -> memory` before the first step: what a multistep solver knows of earlier steps.
    """

    order: int
    step: Callable
    coefficients: Callable
    init: Callable = lambda y: ()


def guided_x0(y, eps, guidance, at: levels.Grid):
    """Guidance as a shift of the predicted noise.

        ε' = ε + √(1-ᾱ_i) g,   x̂ = (y - √(1-ᾱ_i) ε') / √ᾱ_i

    Returns:
      `(x̂, ε')`.
    """
    noise = jnp.sqrt(1 - at.alpha_bar)
    eps = eps + noise * guidance
    return (y - noise * eps) / jnp.sqrt(at.alpha_bar), eps


def option(value: float, grid: levels.Grid) -> np.ndarray:
    """One option at every step, float32 `[S]`."""
    return np.full(len(grid.index), value, np.float32)
