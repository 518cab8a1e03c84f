r"""Runs a method: combines its start, energies and projection with a solver.

Every method runs the same loop of K rounds (EGSDE, algorithm 1; SDEdit has the same repetition):

    x ← x0;  K times:  y ← √ᾱ_{M-1} x + √(1-ᾱ_{M-1}) e,  x ← reverse SDE from y,  with a new e  (1)

The energies' references always perturb the source, x_i = √ᾱ_i x0 + √(1-ᾱ_i) e, with the e of the
round.

With few steps a large λ overshoots. A quadratic energy has a linear gradient, so a step that moves
the state by κ for a gradient of 1 (`solvers.gain`) oscillates where 2 λ κ > 1 and diverges where
2 λ κ > 2. With `follow`, the weight of such an energy is

    λ' = (1 - e^{-2 λ κ}) / (2 κ),                                                            (2)

which makes the step equal to the gradient flow over a time κ; λ' → λ with many steps.

Where all weights of a level are 0, the guide's networks do not run. `every` = n guides only every
n-th step, the first one among them, with n times the weights: the same guidance in all, for a part
of the time (multiple time stepping, as in molecular dynamics). `between` guides within an interval
of levels.

A refinement is more rows of the same scan, which begin with a perturbation of the result.

`Levels` contains the numbers that may change without a new compilation: the noise levels, the
solver's coefficients and the weights, all computed on the host. The rest is part of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import energies, schedules, score_contrast, solvers
from cdsde.diffusion.levels import Grid
from cdsde.diffusion.methods.method import Method, Term
from cdsde.diffusion.noise import Noise

REFINEMENT = 1_000_000  # a refinement's noise is that of a round with a number above this


class Levels(NamedTuple):
    """The numbers of a run, each an array or a tree of arrays `[S, ...]`, first step first.

    Attributes:
      grid: the noise levels.
      coefficients: the solver's coefficients.
      weights: λ of each term at each level, float32 `[S, number of terms]`.
      contrast: λ_c of the contrast of score networks at each level, float32 `[S]`.
      again: int32 `[S]`: 0 in the round itself, n in its n-th refinement.
      moves: int32 `[S]`: number of moves before a steered step.
    """

    grid: Grid
    coefficients: Any
    weights: Any
    contrast: Any
    again: Any
    moves: Any

    def rows(self) -> tuple:
        """The input of the scan; its last part is an `Extra`."""
        # Host tables stay on the host, where another number of steps compiles nothing.
        numpy = jnp if isinstance(self.again, jax.Array) else np
        begins = numpy.diff(self.again, prepend=0) > 0
        extra = Extra(self.weights, self.contrast, self.again, begins, self.moves)
        return solvers.rows(self.grid, self.coefficients, extra)


class Extra(NamedTuple):
    """What a row of the scan holds beside the solver's numbers; `Levels` explains the others.

    Attributes:
      begins: whether a refinement begins with this step.
    """

    weights: Any
    contrast: Any
    again: Any
    begins: Any
    moves: Any


def make_levels(
    method: Method,
    settings,
    grid: Grid,
    solver: solvers.Solver,
    follow: bool = False,
    every: int = 1,
    between: Sequence[int] = (),
) -> Levels:
    """Computes the numbers of a run on the host.

    Args:
      method: one of `methods.METHODS`.
      settings: its group of the config.
      grid: the result of `levels.make_grid`.
      solver: the solver, with its options.
      follow: give quadratic energies the weight of equation (2).
      every: n; guide every n-th step, with n times the weights.
      between: (low, high); guide at levels of index low to high - 1 only; (): at all.
    """
    coefficients = solver.coefficients(grid)
    gain = solvers.gain(solver, grid) if follow else None
    guided = np.arange(len(grid.index)) % every == 0
    if between:
        guided &= (between[0] <= grid.index) & (grid.index < between[1])
    columns = [_weight(t, grid.index, gain, every) * guided for t in method.terms(settings)]
    empty = np.zeros((len(grid.index), 0), np.float32)
    weights = np.stack(columns, axis=1) if columns else empty
    count, steering = len(grid.index), method.steer(settings)
    # Moves without steering would denoise the state and stay at its level.
    guides = np.any(weights != 0, axis=1)
    moves = steering.moves(grid.index) * guides if steering else np.zeros(count)
    again = np.zeros(count, np.int32)
    contrast = (every * method.contrast(settings) * guided).astype(np.float32)
    levels = Levels(grid, coefficients, weights, contrast, again, moves.astype(np.int32))
    return _with_refinements(levels, solver, *method.refine(settings))


def _with_refinements(levels: Levels, solver: solvers.Solver, start: int, rounds: int) -> Levels:
    """Adds the levels below `start` again, `rounds` times, for the SDE without guidance."""
    low = levels.grid.index < start
    again = levels._replace(coefficients=solver.stochastic(levels.grid))
    again = again._replace(weights=0 * levels.weights, contrast=0 * levels.contrast)
    again = jax.tree.map(lambda column: column[low], again)
    for n in range(1, rounds + 1):
        part = again._replace(again=again.again + np.int32(n))
        levels = jax.tree.map(lambda a, b: np.concatenate([a, b]), levels, part)
    return levels


def _weight(term: Term, index: np.ndarray, gain: np.ndarray | None, factor: int) -> np.ndarray:
    """`factor` λ of a term at each level, float32 `[S]`."""
    weight = factor * (term.weight(index) if callable(term.weight) else term.weight)
    if term.quadratic and gain is not None:
        weight = -np.expm1(-2 * weight * gain) / (2 * gain)
    return (weight * np.ones(len(index), np.float32)).astype(np.float32)


def from_perturbed_source(x, e, alpha_bar):
    """The perturbed source √ᾱ x + √(1-ᾱ) e, `[B, H, W, C]`."""
    return schedules.perturb(x, e, alpha_bar)


class Drawn(NamedTuple):
    """The noise of a round: e `[B, H, W, C]`, and that of its steps `[S, B, H, W, C]` or None."""

    start: jax.Array
    steps: jax.Array | None


class Round(NamedTuple):
    """The parts of one round, for a scan or for a program that shows every state.

    Attributes:
      begin: `(x, r, rows) -> (carry, drawn)`, with the round number r and `levels.rows()`.
      step: `(carry, row, r, drawn) -> carry`.
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
    """Builds the parts of a round of equation (1); the arguments are those of `translate`."""
    terms = method.terms(settings)
    references = references_of(terms, networks, x0)
    term_energies = [term.energy(networks) for term in terms]
    each_gradient = _gradients(term_energies)
    gradient = _combined(term_energies, each_gradient, method.combine)
    start = method.start(settings) if method.start else from_perturbed_source
    projection, steering = method.projection(settings), method.steer(settings)
    contrasts = method.contrast(settings) > 0
    invert, refines = method.invert(settings), method.refine(settings)[1] > 0

    def begin(x, r, rows):
        e, steps = noise.start(r), None
        if invert:
            y, steps = invert(x, networks, rows, noise, solver)
        else:
            y = start(x, e, jnp.asarray(rows[1].alpha_bar)[0])
        return (y, solver.init(y)), Drawn(e, steps)

    def begin_again(carry, level, r):
        y = schedules.perturb(carry[0], noise.start(r), level.alpha_bar)
        return y, solver.init(y)

    def eps_of(weight):
        if not contrasts:
            return networks["score"]
        return score_contrast.contrasted(networks["score"], networks["source_score"], weight)

    def step(carry, row, r, drawn):
        _, level, _, extra = row
        r = r + REFINEMENT * extra.again
        if refines:
            carry = jax.lax.cond(extra.begins, begin_again, lambda *same: same[0], carry, level, r)

        def guidance(y, i, level, extra):
            def computed():
                shown = references(drawn.start, level.alpha_bar)
                return gradient(y, shown, i, extra.weights)

            return jax.lax.cond(jnp.any(extra.weights != 0), computed, lambda: jnp.zeros_like(y))

        def steered(y, mean, i, level, extra):
            def computed():
                gradients = each_gradient(y, references(drawn.start, level.alpha_bar), i)
                return steering.mean(y, mean, gradients, x0, level, extra.weights)

            return jax.lax.cond(jnp.any(extra.weights != 0), computed, lambda: mean)

        def project(y, position, level):
            return projection.apply(y, x0, noise.reference(r, position, level.index), level)

        parts: dict[str, Any] = {"eps_fn": eps_of(extra.contrast), "clip": clip}
        parts["noise_fn"] = _noise_of_steps(noise, drawn.steps, r, extra.again, refines)
        parts["project_fn"] = project if projection else None
        if steering:
            parts |= {"steer_fn": steered, "moves_fn": lambda extra: extra.moves}
            return solvers.make_steered_step(solver, **parts)(carry, row)
        parts["guidance_fn"] = guidance if terms else None
        return solvers.make_step(solver, **parts)(carry, row)

    return Round(begin, step, lambda carry: carry[0])


def references_of(terms: Sequence[Term], networks: Mapping[str, Any], x0) -> Callable:
    """`(e, alpha_bar) -> [reference of each term]` for sources `[B, H, W, C]`."""
    views = [term.view(networks, x0) for term in terms]

    def references(e, alpha_bar):
        return [
            (term.reference or schedules.perturb)(view, e, alpha_bar)
            for term, view in zip(terms, views, strict=True)
        ]

    return references


def _gradients(term_energies: Sequence[energies.Energy]) -> Callable:
    """`(y, references, i) -> [gradient of each energy]`."""

    def gradients(y, references, i):
        return [
            jax.grad(lambda y, x_t, energy=energy: jnp.sum(energy(y, x_t, i)))(y, x_t)
            for energy, x_t in zip(term_energies, references, strict=True)
        ]

    return gradients


def _combined(term_energies, each_gradient: Callable, combine: Callable | None) -> Callable:
    """The guidance `(y, references, i, weights) -> g`."""
    if combine is None:
        return jax.grad(energies.total(term_energies))

    def gradient(y, references, i, weights):
        found = each_gradient(y, references, i)
        return combine([w * g for w, g in zip(weights, found, strict=True)], y, i)

    return gradient


def _noise_of_steps(noise: Noise, given, r, again, refines: bool) -> Callable:
    """`(position, i) -> z`: the noises that an inversion gave, or drawn ones."""

    def draw(position, i):
        if given is None:
            return noise.step(r, position, i)
        if not refines:
            return given[position]
        return jnp.where(again == 0, given[position], noise.step(r, position, i))

    return draw


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
    """Translates a batch by equation (1).

    Args:
      x0: source images, float32 `[B, H, W, C]` in [-1, 1].
      method: one of `methods.METHODS`.
      settings: its group of the config.
      networks: the method's networks by name, as functions with bound parameters. "score" is
        `(y, i) -> eps`, with a float32 scalar i in 0 … T-1; networks/build.py describes the others.
        "domain_direction" is present where the method uses it.
      levels: the result of `make_levels`.
      noise: the result of `noise.of_images` or `noise.replay`.
      solver: the solver for which `levels` was computed.
      rounds: K.
      clip: clip the predicted clean image to [-1, 1] in each step; the published code does not.
      keep: number of states to return from each round, see `solvers.reverse`.

    Returns:
      `(y, states)`: the result `[B, H, W, C]`, not clipped, and `[K, keep, B, H, W, C]` (None where
      `keep` is 0).
    """
    parts = make_round(x0, method, settings, networks, noise=noise, solver=solver, clip=clip)
    rows = levels.rows()

    def one_round(x, r):
        carry, drawn = parts.begin(x, r, rows)
        return solvers.reverse(
            lambda carry, row: parts.step(carry, row, r, drawn), carry, rows, keep
        )

    return jax.lax.scan(one_round, x0, jnp.arange(rounds))
