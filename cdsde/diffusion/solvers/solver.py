"""The interface of a solver of the reverse SDE."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import levels


class Solver(NamedTuple):
    """One step of the reverse SDE, from level i to the next lower level p.

    Attributes:
      order: q; halving the step size divides the error of a run by 2^q.
      step: `(y, eps, guidance, level, c, z, memory) -> (y, memory)`. y is the state, eps the
        predicted noise, guidance the gradient of the weighted energies and z ~ N(0, I), each
        `[B, H, W, C]`; level is one row of the grid and c one row of the coefficients.
      coefficients: `grid -> tree of arrays [S]`, the numbers that a step needs beside the grid,
        computed on the host. They include the solver's options, which may therefore change without
        a new compilation.
      stochastic: `grid -> coefficients` of the SDE (η = 1), whatever the options.
      posterior: `(y, x0, level, c, z) -> y`, the step's result if the clean image were known to be
        x0; None where steps draw no noise of their own.
      init: `y -> memory` before the first step; a multistep solver keeps earlier steps in it.
    """

    order: int
    step: Callable
    coefficients: Callable
    stochastic: Callable
    posterior: Callable | None = None
    init: Callable = lambda y: ()


def guided_x0(y, eps, guidance, level: levels.Grid):
    """Applies the guidance g as a shift of the predicted noise, and predicts the clean image.

        ε' = ε + √(1-ᾱ_i) g,   x̂ = (y - √(1-ᾱ_i) ε') / √ᾱ_i

    Returns:
      `(x̂, ε')`, each `[B, H, W, C]`.
    """
    noise = jnp.sqrt(1 - level.alpha_bar)
    eps = eps + noise * guidance
    return (y - noise * eps) / jnp.sqrt(level.alpha_bar), eps


def option(value: float, grid: levels.Grid) -> np.ndarray:
    """An option as a column of coefficients: its value at every step, float32 `[S]`."""
    return np.full(len(grid.index), value, np.float32)


def split(output, level):
    r"""`(eps, factor of σ)` of a network with or without a learned variance.

    With the learned v in [-1, 1] (Nichol and Dhariwal 2021, equation 15), log σ² lies between the
    log of the posterior's variance β̃ and log β, at the share (v+1)/2; σ is that of β̃ here, and

        σ(v) = σ (β/β̃)^((v+1)/4)
    """
    if not isinstance(output, tuple):
        return output, 1.0
    eps, v = output
    return eps, level.spread ** ((v + 1) / 4)
