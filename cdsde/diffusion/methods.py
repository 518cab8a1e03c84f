r"""Methods as compositions: where to start, which energies guide, what is projected.

Every method is the same loop, over K rounds (algorithm 1 of EGSDE; SDEdit's repetition):

    x ← x0;  K times:  y ← √ᾱ_{M-1} x + √(1-ᾱ_{M-1}) e,  down the grid to x,  with a new e      (1)

in which the energies' references are always perturbations of the source, x_i = √ᾱ_i x0 + √(1-ᾱ_i) e
with the round's one draw e.

    sdedit           no energy
    ilvr             from pure noise; after each step y ← y + φ(x_p) - φ(y), x_p freshly perturbed
    egsde            λ_s domain energy + λ_i content energy
    contrastive_sde  λ contrastive energy + λ_i content energy + λ_d contrast of domains

With few steps a large λ overshoots: the low-pass energy is quadratic, and a step that moves the
state by κ for a gradient of 1 (`solvers.gain`) swings once 2 λ κ > 1 and diverges above 2. Where
asked for, its weight is

    λ' = (1 - e^{-2 λ κ}) / (2 κ),                                                          (2)

with which the step does what following the gradient for a time κ does; λ' → λ with many steps.

A method is `(settings, networks) -> Method`; `settings` is its group of the config, `networks`
maps a stage's name to its network with parameters bound, and "discriminant" to
`energies.Discriminant`. Its weights are handed in separately (`weights`), as traced numbers:
changing them does not compile again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import energies, schedules, solvers


class Term(NamedTuple):
    """One energy, and what of the source its reference x_t is a perturbation of (`x0 -> x0`)."""

    energy: energies.Energy
    view: Callable = lambda x0: x0


class Method(NamedTuple):
    """A composition.

    Attributes:
      terms: the energies; their weights are given to `translate`, in this order.
      project: None or `(y, x_level) -> y` after each step; x_level is the source, freshly
        perturbed to the level that `project_level` names.
      project_level: "previous" (the level the step arrived at) or "same" (the one it left).
      from_noise: start from e alone rather than from the perturbed source.
    """

    terms: tuple[Term, ...] = ()
    project: Callable | None = None
    project_level: str = "previous"
    from_noise: bool = False


class Noise(NamedTuple):
    """Where random numbers come from; each function returns `[B, H, W, C]` ~ N(0, I).

    Attributes:
      start: `(round) -> e`.
      step: `(round, position, i) -> z`, fresh at each step.
      reference: `(round, position, i) -> z`, of ILVR's freshly perturbed source.
    """

    start: Callable
    step: Callable
    reference: Callable


def noise_of_images(key, ids, shape) -> Noise:
    """Noise that belongs to the image: a function of seed, image id, round and level alone.

    So no result depends on the batch's order, size or padding, or on the number of devices.

    Args:
      key: typed key of the sampling seed.
      ids: uint32 `[B]`, stable ids of the images.
      shape: `(H, W, C)`.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def draw(*path):
        def one(k):
            for number in path:
                k = jax.random.fold_in(k, number)
            return jax.random.normal(k, shape)

        return jax.vmap(one)(keys)

    return Noise(
        start=lambda r: draw(r, 0),
        step=lambda r, position, i: draw(r, 1, i),
        reference=lambda r, position, i: draw(r, 2, i),
    )


def replay(start, step, reference=None) -> Noise:
    """Noise drawn beforehand, to replay a run of other code.

    Args:
      start: `[K, B, H, W, C]`, e of each round.
      step: `[K, S, B, H, W, C]`, z of each round and step, first step first.
      reference: like `step`, for ILVR; may be None otherwise.
    """
    start, step = jnp.asarray(start), jnp.asarray(step)
    reference = step if reference is None else jnp.asarray(reference)
    return Noise(
        start=lambda r: start[r],
        step=lambda r, position, i: step[r, position],
        reference=lambda r, position, i: reference[r, position],
    )


def sdedit(settings, networks: Mapping[str, Callable]) -> Method:
    """SDEdit (Meng et al. 2022): the reverse SDE from the perturbed source, unguided."""
    return Method()


def ilvr(settings, networks: Mapping[str, Callable]) -> Method:
    """ILVR (Choi et al. 2021): the low frequencies are the source's, at every level."""

    def project(y, x_level):
        return y + energies.lowpass(x_level - y, settings.factor)

    return Method((), project, settings.level, settings.from_noise)


def egsde(settings, networks: Mapping[str, Callable]) -> Method:
    """EGSDE (Zhao et al. 2022): away from the source's domain, near to its layout."""
    classify = networks["classifier"]

    def features(x, i):
        return classify(x, i, head=False)[1]

    domain = energies.domain(features, settings.domain_similarity)
    return Method(
        (
            Term(energies.in_band(domain, settings.domain_band)),
            Term(energies.content(settings.factor, settings.content_similarity)),
        )
    )


def contrastive_sde(settings, networks: Mapping[str, Callable]) -> Method:
    """Contrastive-SDE (arXiv 2510.03821): near to the source in the domain-invariant space.

    With a discriminant also away from the source's look, in the features below the encoder's head.
    """
    encoder = networks["encoder"]

    def encode(x, i):
        return encoder(x, i, space=settings.space)

    view = {
        "perturbed": lambda x0: x0,
        "lowpass": lambda x0: energies.lowpass(x0, settings.factor),
    }[settings.reference]
    if settings.similarity == "nce":
        contrast = energies.patch_contrast(encode, settings.temperature)
    else:
        contrast = energies.contrastive(encode)
    contrast = energies.in_band(contrast, settings.band)
    terms = [Term(contrast, view), Term(energies.content(settings.factor, "neg_l2"))]
    if "discriminant" in networks:

        def features(x, i):
            return encoder(x, i, space="features")

        contrast = energies.domain_contrast(features, networks["discriminant"])
        terms.append(Term(energies.in_band(contrast, settings.domain_band)))
    return Method(tuple(terms))


METHODS = {"contrastive_sde": contrastive_sde, "egsde": egsde, "sdedit": sdedit, "ilvr": ilvr}


def weights(name: str, settings, index: np.ndarray, gain: np.ndarray | None = None) -> np.ndarray:
    """λ of each of the method's energies at each level, float32 `[S, number of energies]`.

    Args:
      name: of the method.
      settings: its group of the config.
      index: `[S]`, the levels.
      gain: `[S]`, κ of each step; given, the low-pass energy's weight is that of equation (2).
    """
    ones = np.ones(len(index), np.float32)
    if name == "egsde":
        quadratic = settings.content_similarity == "neg_l2"
        content = _followed(settings.content_weight, gain if quadratic else None)
        columns = [settings.domain_weight * ones, content * ones]
    elif name == "contrastive_sde":
        on = np.where(index >= settings.cutoff, ones, 0)
        columns = [settings.weight * on, _followed(settings.content_weight, gain) * ones]
        if settings.domain_images:
            columns.append(settings.domain_weight * ones)
    else:
        columns = []
    return np.stack(columns, axis=1) if columns else np.zeros((len(index), 0), np.float32)


def _followed(weight: float, gain: np.ndarray | None):
    """Equation (2)."""
    if gain is None:
        return weight
    return -np.expm1(-2 * weight * gain) / (2 * gain)


def translate(
    x0: jax.Array,
    method: Method,
    *,
    eps_fn: Callable,
    grid: solvers.Grid,
    noise: Noise,
    weights=None,
    solver: solvers.Solver = solvers.ancestral,
    rounds: int = 1,
    clip: bool = False,
    trace: bool | int = False,
    count: jax.Array | None = None,
    watch: Callable | None = None,
):
    """Translate a batch, equation (1).

    Args:
      x0: `[B, H, W, C]` source images in [-1, 1].
      method: the composition.
      eps_fn: `(y, i) -> eps` of the score network, i a float32 scalar in 0 … T-1.
      grid: the levels, `solvers.make_grid`.
      noise: `noise_of_images` or `replay`.
      weights: `[S, number of energies]`, λ of each energy at each step.
      solver: see `solvers.reverse`.
      rounds: K.
      clip, count, watch: see `solvers.reverse`.
      trace: also return the states, all or so many of them.

    Returns:
      `(y, states)`: the result `[B, H, W, C]`, not clamped, and with `trace` the states
      `[K, S, B, H, W, C]` (else None).
    """
    views = [term.view(x0) for term in method.terms]
    gradient = jax.grad(energies.total([term.energy for term in method.terms]))
    grid = solvers.Grid(*map(jnp.asarray, grid))

    def one_round(x, r):
        e = noise.start(r)

        def guidance(y, i, row):
            alpha_bar, lambdas = row
            references = [schedules.perturb(v, e, alpha_bar) for v in views]
            return gradient(y, references, i, lambdas)

        def project(y, at, row):
            position = jnp.argmax(grid.index == at.index)
            z = noise.reference(r, position, at.index)
            same = method.project_level == "same"
            level = at.alpha_bar if same else at.next_alpha_bar
            return method.project(y, schedules.perturb(x0, z, level))

        y = e if method.from_noise else schedules.perturb(x, e, grid.alpha_bar[0])
        return solvers.reverse(
            y,
            grid,
            eps_fn=eps_fn,
            solver=solver,
            noise_fn=lambda position, i: noise.step(r, position, i),
            guidance_fn=guidance if method.terms else None,
            project_fn=project if method.project else None,
            per_step=(grid.alpha_bar, jnp.asarray(weights)) if method.terms else None,
            clip=clip,
            trace=trace,
            count=count,
            watch=watch,
        )

    return jax.lax.scan(one_round, x0, jnp.arange(rounds))
