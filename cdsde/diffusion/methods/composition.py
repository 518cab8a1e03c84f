r"""Runs a method: its start, its energies and its projection around a solver.

Every method is the same loop, over K rounds (algorithm 1 of EGSDE; SDEdit's repetition):

    x ← x0;  K times:  y ← √ᾱ_{M-1} x + √(1-ᾱ_{M-1}) e,  down the levels to x,  with a new e    (1)

The energies' references are always perturbations of the source, x_i = √ᾱ_i x0 + √(1-ᾱ_i) e, with
the round's one draw e.

With few steps a large λ overshoots. A quadratic energy has a linear gradient, so a step that moves
the state by κ for a gradient of 1 (`solvers.gain`) oscillates once 2 λ κ > 1 and diverges above 2.
Where asked for, its weight is

    λ' = (1 - e^{-2 λ κ}) / (2 κ),                                                            (2)

with which the step does what following the gradient for a time κ does; λ' → λ with many steps.

What may change without compiling again is in `Levels`, computed on the host: the noise levels, the
solver's coefficients and the weights. All else is part of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import energies, schedules, solvers
from cdsde.diffusion.levels import Grid
from cdsde.diffusion.methods.method import Method, Term
from cdsde.diffusion.noise import Noise


class Levels(NamedTuple):
    """The numbers of a run, each an array or a tree of arrays `[S, ...]`, first step first.

    Attributes:
      grid: the noise levels.
      coefficients: of the solver.
      weights: λ of each term at each level, float32 `[S, number of terms]`.
    """

    grid: Grid
    coefficients: Any
    weights: np.ndarray


def make_levels(
    method: Method, settings, grid: Grid, solver: solvers.Solver, follow: bool = False
) -> Levels:
    """The numbers of a run of a method down a grid, on the host.

    Args:
      method: one of `methods.METHODS`.
      settings: its group of the config.
      grid: `levels.make_grid`.
      solver: with its options.
      follow: quadratic energies get the weight of equation (2).
    """
    coefficients = solver.coefficients(grid)
    gain = solvers.gain(solver, grid) if follow else None
    columns = [_weight(term, grid.index, gain) for term in method.terms(settings)]
    empty = np.zeros((len(grid.index), 0), np.float32)
    weights = np.stack(columns, axis=1) if columns else empty
    return Levels(grid, coefficients, weights)


def _weight(term: Term, index: np.ndarray, gain: np.ndarray | None) -> np.ndarray:
    """λ of a term at each level, float32 `[S]`."""
    weight = term.weight(index) if callable(term.weight) else term.weight
    if term.quadratic and gain is not None:
        weight = -np.expm1(-2 * weight * gain) / (2 * gain)
    return (weight * np.ones(len(index), np.float32)).astype(np.float32)


def from_perturbed_source(x, e, alpha_bar):
    """√ᾱ x + √(1-ᾱ) e."""
    return schedules.perturb(x, e, alpha_bar)


def from_noise(x, e, alpha_bar):
    """e."""
    return e


class Round(NamedTuple):
    """The parts of one round, for a scan or for a program that shows every state.

    Attributes:
      begin: `(x, r, alpha_bar of the first level) -> carry`; r is the number of the round.
      step: `(carry, row, r) -> carry`; `row` is a row of `solvers.rows(*levels)`.
      state: `carry -> y [B, H, W, C]`.
    """

    begin: Callable
    step: Callable
    state: Callable


def make_round(
    x0: jax.Array,
    method: Method,
    settings,
    networks: Mapping[str, Any],
    *,
    noise: Noise,
    solver: solvers.Solver,
    clip: bool = False,
) -> Round:
    """The parts of equation (1); arguments are those of `translate`."""
    terms = method.terms(settings)
    views = [term.view(x0) for term in terms]
    weighted = [term.energy(networks) for term in terms]
    projection = method.projection(settings)
    start = method.start(settings) if method.start else from_perturbed_source
    gradient = _combined(weighted, method.combine)

    def begin(x, r, alpha_bar):
        y = start(x, noise.start(r), alpha_bar)
        return y, solver.init(y)

    def step(carry, row, r):
        def guidance(y, i, at, lambdas):
            e = noise.start(r)
            references = [schedules.perturb(view, e, at.alpha_bar) for view in views]
            return gradient(y, references, i, lambdas)

        def project(y, position, at):
            z = noise.reference(r, position, at.index)
            level = at.alpha_bar if projection.level == "same" else at.next_alpha_bar
            return projection.apply(y, schedules.perturb(x0, z, level))

        advance = solvers.make_step(
            solver,
            eps_fn=networks["score"],
            noise_fn=lambda position, i: noise.step(r, position, i),
            guidance_fn=guidance if terms else None,
            project_fn=project if projection else None,
            clip=clip,
        )
        return advance(carry, row)

    return Round(begin, step, lambda carry: carry[0])


def _combined(parts, combine: Callable | None) -> Callable:
    """`(y, references, i, weights) -> g`."""
    if combine is None:
        return jax.grad(energies.total(parts))

    def gradient(y, references, i, weights):
        slopes = [
            jax.grad(energies.total([part]))(y, [x_t], i, weight[None])
            for part, x_t, weight in zip(parts, references, weights, strict=True)
        ]
        return combine(slopes, y, i)

    return gradient


def translate(
    x0: jax.Array,
    method: Method,
    settings,
    networks: Mapping[str, Any],
    levels: Levels,
    *,
    noise: Noise,
    solver: solvers.Solver,
    rounds: int = 1,
    clip: bool = False,
    keep: int = 0,
):
    """Translate a batch, equation (1).

    Args:
      x0: `[B, H, W, C]` source images in [-1, 1].
      method: one of `methods.METHODS`.
      settings: its group of the config.
      networks: by name, with parameters bound: "score" is `(y, i) -> eps`, i a float32 scalar in
        0 … T-1; the others are as networks/build.py says. "domain_direction" where the method has
        one.
      levels: `make_levels`.
      noise: `noise.of_images` or `noise.replay`.
      solver: the one of `levels`; its options are in there.
      rounds: K.
      clip: clip the predicted clean image to [-1, 1] in each step; the published code does not.
      keep: how many states of each round are returned, see `solvers.reverse`.

    Returns:
      `(y, states)`: the result `[B, H, W, C]`, not clamped, and `[K, keep, B, H, W, C]` (None where
      `keep` is 0).
    """
    parts = make_round(x0, method, settings, networks, noise=noise, solver=solver, clip=clip)
    rows = solvers.rows(*levels)
    first = jnp.asarray(levels.grid.alpha_bar)[0]

    def one_round(x, r):
        carry = parts.begin(x, r, first)
        return solvers.reverse(lambda carry, row: parts.step(carry, row, r), carry, rows, keep)

    return jax.lax.scan(one_round, x0, jnp.arange(rounds))
