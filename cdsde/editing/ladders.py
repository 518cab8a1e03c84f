r"""DDIM without noise: the ladder of levels, one move on it, sampling and inversion (η = 0).

With ᾱ of the two levels and the noise ε that the network sees,

    move(x, ε, ᾱ_from, ᾱ_to) = √ᾱ_to (x - √(1-ᾱ_from) ε) / √ᾱ_from + √(1-ᾱ_to) ε               (1)

Sampling goes down from each rung t to t - s; inversion goes the other way, and there are several
readings of where its noise is predicted:

    next      at the rung moved to; from the clean latent's ᾱ_0 up (null-text inversion, diffusers)
    current   at the rung that the latent is on (0 for the first move)
    p2p0      pix2pix-zero's scheduler: without the first and last rung, levels shifted by one index
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
      prediction: what the network's output means: "epsilon" or "v_prediction".
      clean: ᾱ of the clean latent; diffusers takes ᾱ_0 for it, or 1 (`set_alpha_to_one`).
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
    """Moves, first one first; each `[N]`.

    Attributes:
      t: the index that the network is told.
      start, end: ᾱ before and after the move.
    """

    t: Any
    start: Any
    end: Any


def rungs(schedule: LatentSchedule, steps: int) -> tuple[np.ndarray, int]:
    """Ascending indices, `[steps]`, and their spacing.

    Raises:
      ValueError: more steps than levels.
    """
    count = len(schedule.alpha_bar)
    if not 1 <= steps < count:
        raise ValueError(f"{steps} steps do not fit into {count} levels; take 1 to {count - 1}")
    spacing = count // steps
    return np.arange(steps) * spacing + schedule.offset, spacing


def sampling(schedule: LatentSchedule, steps: int) -> Ladder:
    """Down to the clean latent."""
    t, spacing = rungs(schedule, steps)
    below = _alpha_bar(schedule, t - spacing)
    return Ladder(*(x[::-1].copy() for x in (t, schedule.alpha_bar[t], below)))


def inversion(schedule: LatentSchedule, steps: int, kind: str = "next") -> Ladder:
    """Up from the clean latent, by one of `INVERSIONS`."""
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
    """ᾱ_t; below the lowest level that of the clean latent."""
    return np.where(t < 0, schedule.clean_alpha_bar, schedule.alpha_bar[np.maximum(t, 0)])


def shared(up: Ladder, down: Ladder) -> np.ndarray:
    """Where the states of a finer inversion are those of a sampling ladder, `[steps + 1]`.

    Positions among the states of `run(x, up, ...)`: the clean one, then the rungs of `down`, the
    lowest first.

    Raises:
      ValueError: a rung of `down` is none of `up`.
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
    """The noise that a network's output means."""
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
    """Move along a ladder, one scan.

    Args:
      x: `[B, h, w, C]`.
      ladder: the moves.
      eps_fn: `(x, t) -> eps`.
      adjust: None or `(eps, row of per_step) -> eps`, such as `noise.regularise`.
      per_step: tree of `[N, ...]` for `adjust`.

    Returns:
      The last state, and all of them with the first, `[N + 1, B, h, w, C]`.
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
