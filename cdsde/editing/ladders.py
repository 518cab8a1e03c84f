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

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

INVERSIONS = ("next", "current", "p2p0")


class Schedule(NamedTuple):
    """Noise levels of a model.

    Attributes:
      alpha_bar: ᾱ, float32 `[T]`.
      offset: of the lowest rung.
      prediction: what the network's output means: "epsilon" or "v_prediction".
    """

    alpha_bar: np.ndarray
    offset: int = 1
    prediction: str = "epsilon"


class Ladder(NamedTuple):
    """Moves, first one first; each `[N]`.

    Attributes:
      t: the index that the network is told.
      start, end: ᾱ before and after the move.
    """

    t: Any
    start: Any
    end: Any


def scaled_linear(first: float = 0.00085, last: float = 0.012, count: int = 1000) -> Schedule:
    """SD-1.x's: √β evenly spaced, in float32 as the published code computes it."""
    root = np.linspace(np.sqrt(first), np.sqrt(last), count, dtype=np.float32)
    return Schedule(np.cumprod(1 - root**2, dtype=np.float32))


def read_schedule(folder: str | Path) -> Schedule:
    """The schedule of a diffusers folder's `scheduler/`; DDIM is run whatever sampler it names.

    Raises:
      ValueError: no file, or a schedule other than "scaled_linear" and "linear".
    """
    path = Path(folder) / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; it says the noise levels of the model")
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = config.get("beta_schedule")
    first, last = config["beta_start"], config["beta_end"]
    count = config["num_train_timesteps"]
    if kind == "scaled_linear":
        schedule = scaled_linear(first, last, count)
    elif kind == "linear":
        beta = np.linspace(first, last, count, dtype=np.float32)
        schedule = Schedule(np.cumprod(1 - beta, dtype=np.float32))
    else:
        raise ValueError(f"{path} names the schedule '{kind}'; scaled_linear and linear are known")
    return schedule._replace(
        offset=config.get("steps_offset", 0),
        prediction=config.get("prediction_type", "epsilon"),
    )


def rungs(schedule: Schedule, steps: int) -> tuple[np.ndarray, int]:
    """Ascending indices, `[steps]`, and their spacing.

    Raises:
      ValueError: more steps than levels.
    """
    count = len(schedule.alpha_bar)
    if not 1 <= steps < count:
        raise ValueError(f"{steps} steps do not fit into {count} levels; take 1 to {count - 1}")
    spacing = count // steps
    return np.arange(steps) * spacing + schedule.offset, spacing


def sampling(schedule: Schedule, steps: int) -> Ladder:
    """Down to the clean latent, which is taken to be at ᾱ_0."""
    t, spacing = rungs(schedule, steps)
    below = schedule.alpha_bar[np.maximum(t - spacing, 0)]
    return Ladder(*(x[::-1].copy() for x in (t, schedule.alpha_bar[t], below)))


def inversion(schedule: Schedule, steps: int, kind: str = "next") -> Ladder:
    """Up from the clean latent, by one of `INVERSIONS`."""
    t, spacing = rungs(schedule, steps)
    a = schedule.alpha_bar
    if kind == "p2p0":
        t = t[1:-1]
        return Ladder(t, a[t - 1], a[t + spacing - 1])
    start = a[np.maximum(t - spacing, 0)]
    if kind == "current":
        return Ladder(np.maximum(t - spacing, 0), start, a[t])
    return Ladder(t, start, a[t])


def shared(up: Ladder, down: Ladder) -> np.ndarray:
    """Where the states of a finer inversion are those of a sampling ladder, `[steps + 1]`.

    Positions among the states of `run(x, up, ...)`: the clean one, then the rungs of `down`, the
    lowest first.

    Raises:
      ValueError: a rung of `down` is none of `up`.
    """
    wanted, rungs_up = np.asarray(down.t)[::-1], np.asarray(up.t)
    if not np.isin(wanted, rungs_up).all():
        raise ValueError(
            f"an inversion of {len(rungs_up)} steps does not pass the levels of {len(wanted)} "
            "sampling steps; take a multiple of them that divides the schedule alike, or one less "
            "than its levels"
        )
    return np.concatenate([[0], 1 + np.searchsorted(rungs_up, wanted)])


def move(x: jax.Array, eps: jax.Array, start, end) -> jax.Array:
    """Equation (1)."""
    clean = (x - jnp.sqrt(1 - start) * eps) / jnp.sqrt(start)
    return jnp.sqrt(end) * clean + jnp.sqrt(1 - end) * eps


def to_eps(schedule: Schedule, x: jax.Array, out: jax.Array, t) -> jax.Array:
    """The noise that a network's output means."""
    if schedule.prediction == "epsilon":
        return out
    alpha_bar = jnp.asarray(schedule.alpha_bar)[t]
    return jnp.sqrt(alpha_bar) * out + jnp.sqrt(1 - alpha_bar) * x


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
