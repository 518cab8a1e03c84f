"""Noise levels: those that a run goes through, and those that a training step draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from cdsde.diffusion.schedules import Schedule


class Grid(NamedTuple):
    """The noise levels of a run, each array `[S]`, first step first.

    Attributes:
      index: i, int32, decreasing to 0.
      last: whether this is the last step (to the clean image).
      alpha_bar, next_alpha_bar: ᾱ_i and ᾱ_p of the next lower level p (1 after the last step).
      beta: β = 1 - ᾱ_i/ᾱ_p of the step.
    """

    index: Any
    last: Any
    alpha_bar: Any
    next_alpha_bar: Any
    beta: Any


def indices(start: int, steps: int | None = None, log_snr: np.ndarray | None = None) -> np.ndarray:
    """The levels visited: start-1 … 0, all of them or `steps` spaced ones, int32.

    Args:
      start: M, the number of levels below the start.
      steps: network evaluations; None takes every level.
      log_snr: `[T]`, decreasing, log ᾱ/(1-ᾱ): levels are evenly spaced in it (as far as there are
        levels), which is denser at low noise; None: evenly spaced in the index.

    Raises:
      ValueError: steps outside 1 … start.
    """
    steps = start if steps is None else steps
    if not 1 <= steps <= start:
        raise ValueError(f"steps is {steps}; it must lie in 1..{start}, the start level")
    if steps == 1:
        return np.array([start - 1], np.int32)
    if log_snr is None:
        return np.round(np.linspace(start - 1, 0, steps)).astype(np.int32)
    even = np.linspace(log_snr[start - 1], log_snr[0], steps)
    i = np.round(np.interp(-even, -log_snr[:start], np.arange(start))).astype(np.int32)
    # At low noise neighbouring levels are farther apart than the spacing: one after the other then.
    floor = np.arange(steps - 1, -1, -1)
    i = floor + np.maximum.accumulate((i - floor)[::-1])[::-1]
    return np.minimum(i, start - 1 - np.arange(steps)).astype(np.int32)


def make_grid(
    schedule: Schedule, start: int, steps: int | None = None, spacing: str = "index"
) -> Grid:
    """The levels of `indices(start, steps)` and their tables, float32.

    Where every level is taken, β is the schedule's own (not 1 - ᾱ_i/ᾱ_p, which would round).
    `spacing` is "index" or "log_snr": in what the levels are evenly spaced.
    """
    i = indices(start, steps, {"index": None, "log_snr": schedule.log_snr}[spacing])
    following = np.append(i[1:], -1)
    alpha_bar = schedule.alpha_bar[i]
    next_alpha_bar = np.where(following >= 0, schedule.alpha_bar[following], np.float32(1))
    jump = 1 - alpha_bar.astype(np.float64) / next_alpha_bar.astype(np.float64)
    beta = np.where(i - following == 1, schedule.beta[i], jump.astype(np.float32))
    return Grid(i, following < 0, alpha_bar, next_alpha_bar, beta)


def uniform_shares(count: int) -> np.ndarray:
    """Each of `count` levels as often as any other, `[count]` summing to 1."""
    return np.full(count, 1 / count)


def log_normal_shares(schedule: Schedule, mean: float, std: float) -> np.ndarray:
    """How often each level is drawn where the log-SNR is drawn from N(mean, std²), `[T]`.

    Karras et al. 2022, equation 8; their ln σ is minus half of the log-SNR. Most steps of a short
    training then go to the levels at which pictures take shape, and low noise is not starved.
    """
    log_snr = schedule.log_snr
    edges = np.concatenate([[np.inf], (log_snr[1:] + log_snr[:-1]) / 2, [-np.inf]])
    below = norm.cdf((edges - mean) / std)
    return below[:-1] - below[1:]


def draw_levels(key, shares: np.ndarray, count: int) -> jax.Array:
    """`count` indices, i with probability `shares[i]`; one from each stratum (less variance)."""
    draw, shuffle = jax.random.split(key)
    u = (jnp.arange(count) + jax.random.uniform(draw, (count,))) / count
    # Shuffled, so that a stratum is not tied to a domain (the domains alternate in a batch).
    u = jax.random.permutation(shuffle, u)
    up_to = np.cumsum(shares).astype(np.float32)
    return jnp.minimum(jnp.searchsorted(up_to, u, side="right"), len(shares) - 1)
