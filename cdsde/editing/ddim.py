r"""Deterministic DDIM (η = 0; Song et al. 2021): noise levels, moves, sampling and inversion.

With ᾱ of the two levels and the predicted noise ε,

    move(x, ε, ᾱ_from, ᾱ_to) = √ᾱ_to (x - √(1-ᾱ_from) ε) / √ᾱ_from + √(1-ᾱ_to) ε               (1)

A ladder is a sequence of such moves, and a rung is one of its levels. Sampling moves down from each
rung t to t - s; inversion moves up. Published inversions predict the noise at different levels:

    next      at the rung after the move, starting at ᾱ_0 (null-text inversion, diffusers)
    current   at the rung before the move (index 0 for the first move)
    p2p0      pix2pix-zero's scheduler: no first and last rung, levels shifted by one index
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import schedules

INVERSIONS = ("next", "current", "p2p0")
P2P0_STEPS = 3  # least number of steps of p2p0, of which one is left
PREDICTIONS = ("epsilon", "v_prediction", "sample")  # what a network's output may mean


class LatentSchedule(NamedTuple):
    """Noise levels of a latent diffusion model.

    Attributes:
      alpha_bar: ᾱ, float32 `[T]`.
      offset: index of the lowest rung.
      prediction: meaning of the network's output, one of `PREDICTIONS`; "sample": the clean latent.
      clean: ᾱ of the clean latent: None for ᾱ_0, or 1 (diffusers' `set_alpha_to_one`).
    """

    alpha_bar: np.ndarray
    offset: int = 1
    prediction: str = "epsilon"
    clean: float | None = None

    @property
    def clean_alpha_bar(self) -> np.float32:
        """`clean`, or ᾱ_0 where it is None."""
        return np.float32(self.alpha_bar[0] if self.clean is None else self.clean)


class Ladder(NamedTuple):
    """N moves in order; each field is `[N]`.

    Attributes:
      t: the time index that the network receives.
      start, end: ᾱ before and after the move.
    """

    t: Any
    start: Any
    end: Any


def rungs(schedule: LatentSchedule, steps: int) -> tuple[np.ndarray, int]:
    """Ascending indices of the rungs, `[steps]`, and their spacing.

    Raises:
      ValueError: `steps` is below 1 or not below the number of levels, or the highest rung lies
        beyond the levels.
    """
    count = len(schedule.alpha_bar)
    if not 1 <= steps < count:
        raise ValueError(f"{steps} steps do not fit into {count} levels; take 1 to {count - 1}")
    spacing = count // steps
    t = np.arange(steps) * spacing + schedule.offset
    if t[-1] >= count:
        raise ValueError(
            f"{steps} steps from level {schedule.offset} on (steps_offset of the scheduler) end at "
            f"level {t[-1]}, and the last level is {count - 1}; take another number of steps"
        )
    return t, spacing


def sampling(schedule: LatentSchedule, steps: int) -> Ladder:
    """The moves from the highest rung down to the clean latent."""
    t, spacing = rungs(schedule, steps)
    below = _alpha_bar(schedule, t - spacing)
    return Ladder(*(x[::-1].copy() for x in (t, schedule.alpha_bar[t], below)))


def inversion(schedule: LatentSchedule, steps: int, kind: str = "next") -> Ladder:
    """The moves from the clean latent up; `kind` is one of `INVERSIONS`.

    Raises:
      ValueError: as `rungs`, or `kind` is "p2p0" and no move is left.
    """
    t, spacing = rungs(schedule, steps)
    a = schedule.alpha_bar
    if kind == "p2p0":
        if steps < P2P0_STEPS:
            raise ValueError(
                f"an inversion of the kind p2p0 leaves out the first and the last of its {steps} "
                f"moves, so that nothing is inverted; take at least {P2P0_STEPS} steps, or next"
            )
        t = t[1:-1]
        return Ladder(t, a[t - 1], a[t + spacing - 1])
    start = _alpha_bar(schedule, t - spacing)
    if kind == "current":
        return Ladder(np.maximum(t - spacing, 0), start, a[t])
    return Ladder(t, start, a[t])


def _alpha_bar(schedule: LatentSchedule, t: np.ndarray) -> np.ndarray:
    """ᾱ_t; for t < 0 that of the clean latent."""
    return np.where(t < 0, schedule.clean_alpha_bar, schedule.alpha_bar[np.maximum(t, 0)])


def shared(schedule: LatentSchedule, steps: int, inversion_steps: int, kind: str) -> np.ndarray:
    """Where the levels of sampling are among the states of a finer inversion, `[steps + 1]`.

    The positions index the states of `run(x, inversion(...), ...)`: the clean one, then the state
    at each level of `sampling(schedule, steps)`, ascending. A state counts by the level that it has
    reached, whatever the level at which its noise was predicted.

    Raises:
      ValueError: the inversion does not pass all levels of sampling.
    """
    needed = sampling(schedule, steps).start[::-1]
    reached = inversion(schedule, inversion_steps, kind).end
    if kind == "p2p0" or not np.isin(needed, reached).all():
        remedy = "set it to None, or take edit.inversion=next"
        if kind != "p2p0":
            remedy = f"take one of {', '.join(map(str, _finer(schedule, steps)))}"
        raise ValueError(
            f"config.edit.inversion_steps is {inversion_steps}, and an inversion of the kind "
            f"{kind} with so many does not pass the levels of {steps} sampling steps; {remedy}"
        )
    return np.concatenate([[0], 1 + np.searchsorted(-reached, -needed)])


def _finer(schedule: LatentSchedule, steps: int) -> list[int]:
    """Numbers of inversion steps that pass the levels of `steps` sampling steps."""
    count = len(schedule.alpha_bar)
    spacing = count // steps
    finer = [n for n in range(spacing, 0, -1) if spacing % n == 0]
    # As many as fit: the highest rung must exist, and there is one level more than steps.
    return [min(count // n, (count - 1 - schedule.offset) // n + 1, count - 1) for n in finer]


def move(x: jax.Array, eps: jax.Array, start, end) -> jax.Array:
    """Equation (1): from ᾱ `start` to ᾱ `end`."""
    return schedules.perturb(schedules.eps_to_x0(x, eps, start), eps, end)


def to_eps(schedule: LatentSchedule, x: jax.Array, out: jax.Array, t) -> jax.Array:
    """ε of a network's output `out` at `x` and index `t`, by the schedule's prediction type."""
    if schedule.prediction == "epsilon":
        return out
    convert = {"v_prediction": schedules.v_to_eps, "sample": schedules.x0_to_eps}
    return convert[schedule.prediction](x, out, schedules.gather(schedule.alpha_bar, t))


def run(
    x: jax.Array,
    ladder: Ladder,
    eps_fn: Callable,
    adjust: Callable | None = None,
    per_step: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Apply the moves of a ladder in one scan.

    Args:
      x: `[B, h, w, C]`.
      ladder: the moves.
      eps_fn: `(x, t) -> eps`.
      adjust: None or `(eps, row of per_step) -> eps`, such as `regularise.towards_noise`.
      per_step: tree of `[N, ...]` for `adjust`.

    Returns:
      The last state `[B, h, w, C]` and all states from `x` on, `[N + 1, B, h, w, C]`.
    """

    def body(x, row):
        (t, start, end), extra = row
        eps = eps_fn(x, t)
        if adjust is not None:
            eps = adjust(eps, extra)
        x = move(x, eps, start, end)
        return x, x

    rows = (Ladder(*map(jnp.asarray, ladder)), per_step)
    last, states = jax.lax.scan(body, x, rows)
    return last, jnp.concatenate([x[None], states])
