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


class LatentSchedule(NamedTuple):
    """Noise levels of a latent diffusion model.

    Attributes:
      alpha_bar: ᾱ, float32 `[T]`.
      offset: index of the lowest rung.
      prediction: meaning of the network's output: "epsilon" or "v_prediction".
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
      ValueError: `steps` is below 1 or not below the number of levels.
    """
    count = len(schedule.alpha_bar)
    if not 1 <= steps < count:
        raise ValueError(f"{steps} steps do not fit into {count} levels; take 1 to {count - 1}")
    spacing = count // steps
    return np.arange(steps) * spacing + schedule.offset, spacing


def sampling(schedule: LatentSchedule, steps: int) -> Ladder:
    """The moves from the highest rung down to the clean latent."""
    t, spacing = rungs(schedule, steps)
    below = _alpha_bar(schedule, t - spacing)
    return Ladder(*(x[::-1].copy() for x in (t, schedule.alpha_bar[t], below)))


def inversion(schedule: LatentSchedule, steps: int, kind: str = "next") -> Ladder:
    """The moves from the clean latent up; `kind` is one of `INVERSIONS`."""
    t, spacing = rungs(schedule, steps)
    a = schedule.alpha_bar
    if kind == "p2p0":
        t = t[1:-1]
        return Ladder(t, a[t - 1], a[t + spacing - 1])
    start = _alpha_bar(schedule, t - spacing)
    if kind == "current":
        return Ladder(np.maximum(t - spacing, 0), start, a[t])
    return Ladder(t, start, a[t])


def _alpha_bar(schedule: LatentSchedule, t: np.ndarray) -> np.ndarray:
    """ᾱ_t; for t < 0 that of the clean latent."""
    return np.where(t < 0, schedule.clean_alpha_bar, schedule.alpha_bar[np.maximum(t, 0)])


def shared(up: Ladder, down: Ladder) -> np.ndarray:
    """Positions of a sampling ladder's levels among the states of a finer inversion, `[steps + 1]`.

    They index the states of `run(x, up, ...)`: the clean one, then the rungs of `down`, ascending.

    Raises:
      ValueError: `up` does not contain a rung of `down`.
    """
    rungs_down, rungs_up = np.asarray(down.t)[::-1], np.asarray(up.t)
    if not np.isin(rungs_down, rungs_up).all():
        raise ValueError(
            f"an inversion of {len(rungs_up)} steps does not pass the levels of {len(rungs_down)} "
            "sampling steps; take a multiple of them that divides the schedule alike, or one less "
            "than its levels"
        )
    return np.concatenate([[0], 1 + np.searchsorted(rungs_up, rungs_down)])


def move(x: jax.Array, eps: jax.Array, start, end) -> jax.Array:
    """Equation (1): from ᾱ `start` to ᾱ `end`."""
    return schedules.perturb(schedules.eps_to_x0(x, eps, start), eps, end)


def to_eps(schedule: LatentSchedule, x: jax.Array, out: jax.Array, t) -> jax.Array:
    """ε of a network's output `out` at `x` and index `t`, by the schedule's prediction type."""
    if schedule.prediction == "epsilon":
        return out
    return schedules.v_to_eps(x, out, schedules.gather(schedule.alpha_bar, t))


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
