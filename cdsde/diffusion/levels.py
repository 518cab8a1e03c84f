"""Noise levels: the grid of a sampling run, and the random levels of a training step."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from cdsde.diffusion.schedules import Schedule


class Grid(NamedTuple):
    """The noise levels of a run, each array `[S]`, first step first.

    Attributes:
      index: i, int32, decreasing, to 0 unless levels are spaced as "trailing".
      last: bool, whether this is the last step (to the clean image).
      alpha_bar, next_alpha_bar: ᾱ_i, and ᾱ_p of the next lower level p (1 in the last step).
      beta: β = 1 - ᾱ_i/ᾱ_p of the step.
      spread: β/β̃ = (1-ᾱ_i)/(1-ᾱ_p), the largest variance of the step over the smallest (1 in the
        last step, which draws no noise); at low noise its float32 form would be far off.
      exact_noise: √(1-ᾱ_i) from β in float64, for steered steps and DDIB's way up; from the
        rounded ᾱ it would be off by 2e-4 at low noise.
    """

    index: Any
    last: Any
    alpha_bar: Any
    next_alpha_bar: Any
    beta: Any
    spread: Any
    exact_noise: Any


def indices(
    start: int, steps: int | None = None, spacing: str = "index", log_snr: np.ndarray | None = None
) -> np.ndarray:
    """Indices of the levels of a run, int32 `[S]`, descending.

    Args:
      start: M, the number of levels below the start.
      steps: S, the number of network evaluations; None takes every level.
      spacing: "index": evenly spaced from start-1 to 0; "log_snr": the same in log-SNR, as far as
        the indices allow, which is denser at low noise; "leading": ⌊n M/S⌋ from 0 up, and
        "trailing": from start-1 down by M/S, as diffusers spaces levels where S divides M.
      log_snr: log ᾱ/(1-ᾱ), `[T]`, decreasing, for "log_snr".

    Raises:
      ValueError: `steps` is outside 1 … start.
    """
    steps = start if steps is None else steps
    if not 1 <= steps <= start:
        raise ValueError(f"steps is {steps}; it must lie in 1..{start}, the start level")
    if spacing == "leading":
        return (np.arange(steps)[::-1] * start // steps).astype(np.int32)
    if spacing == "trailing":
        return (np.round(np.arange(start, 0, -start / steps))[:steps] - 1).astype(np.int32)
    if steps == 1:
        return np.array([start - 1], np.int32)
    if spacing == "index":
        return np.round(np.linspace(start - 1, 0, steps)).astype(np.int32)
    assert log_snr is not None, "log_snr is what these levels are evenly spaced in"
    even = np.linspace(log_snr[start - 1], log_snr[0], steps)
    i = np.round(np.interp(-even, -log_snr[:start], np.arange(start))).astype(np.int32)
    # At low noise neighbouring levels are farther apart than the spacing, which would repeat an
    # index: there, every level is taken.
    floor = np.arange(steps - 1, -1, -1)
    i = floor + np.maximum.accumulate((i - floor)[::-1])[::-1]
    return np.minimum(i, start - 1 - np.arange(steps)).astype(np.int32)


def make_grid(
    schedule: Schedule, start: int, steps: int | None = None, spacing: str = "index"
) -> Grid:
    """The grid of a run: the levels of `indices` and their tables, float32 `[S]`.

    Where consecutive levels are adjacent, β is the schedule's own value: 1 - ᾱ_i/ᾱ_p would add a
    rounding error.

    Args:
      schedule: tables of all T levels.
      start, steps: as in `indices`.
      spacing: as in `indices`.

    Raises:
      ValueError: `steps` is outside 1 … start.
    """
    i = indices(start, steps, spacing, schedule.log_snr)
    following = np.append(i[1:], -1)
    alpha_bar = schedule.alpha_bar[i]
    next_alpha_bar = np.where(following >= 0, schedule.alpha_bar[following], np.float32(1))
    jump = 1 - alpha_bar.astype(np.float64) / next_alpha_bar.astype(np.float64)
    beta = np.where(i - following == 1, schedule.beta[i], jump.astype(np.float32))
    last = following < 0
    left = 1 - np.where(last, alpha_bar, next_alpha_bar).astype(np.float64)
    spread = ((1 - alpha_bar.astype(np.float64)) / left).astype(np.float32)
    exact = np.cumprod(1 - schedule.beta.astype(np.float64))[i]
    noise = np.sqrt(1 - exact).astype(np.float32)
    return Grid(i, last, alpha_bar, next_alpha_bar, beta, spread, noise)


def respaced(num_steps: int, spacing: str) -> np.ndarray:
    """The levels that guided-diffusion's `timestep_respacing` keeps, int32, increasing.

    Args:
      num_steps: T, the number of all levels.
      spacing: "ddimN", every k-th level so that N are left; "N", N levels from the first to the
        last; "a,b,c", such numbers of levels from parts of equal length.

    Raises:
      ValueError: `spacing` is none of these, or asks for more levels than there are.
    """
    match = re.fullmatch(r"(ddim)?(\d+(?:,\d+)*)", spacing)
    counts = [int(n) for n in match[2].split(",")] if match else []
    if not counts or min(counts) < 1 or (match and match[1] and len(counts) > 1):
        raise ValueError(f"the spacing of levels is '{spacing}'; write ddim25, 25 or 10,10,5")
    too_many = f"the spacing '{spacing}' cannot be had of {num_steps} levels"
    if match and match[1]:
        for stride in range(1, num_steps + 1):
            if len(range(0, num_steps, stride)) == counts[0]:
                return np.arange(0, num_steps, stride, dtype=np.int32)
        raise ValueError(too_many)
    kept, start = [], 0
    for part, count in enumerate(counts):
        size = num_steps // len(counts) + (part < num_steps % len(counts))
        if count > size:
            raise ValueError(too_many)
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # The published code adds the stride again and again, which moves a level now and then.
        steps = np.cumsum(np.r_[0.0, np.full(count - 1, stride)])
        kept.append(start + np.round(steps).astype(np.int32))
        start += size
    return np.concatenate(kept)


def uniform_shares(count: int) -> np.ndarray:
    """Uniform probabilities of `count` levels, float64 `[count]`."""
    return np.full(count, 1 / count)


def log_normal_shares(schedule: Schedule, mean: float, std: float) -> np.ndarray:
    """Probability of each level where the log-SNR follows N(mean, std²), float64 `[T]`.

    This is the distribution of EDM (Karras et al. 2022, table 1), whose ln σ is minus half of the
    log-SNR. A short training then spends most steps on the levels where images take shape, and
    still trains low noise.
    """
    log_snr = schedule.log_snr
    edges = np.concatenate([[np.inf], (log_snr[1:] + log_snr[:-1]) / 2, [-np.inf]])
    below = norm.cdf((edges - mean) / std)
    return below[:-1] - below[1:]


def draw_levels(key, shares: np.ndarray, count: int) -> jax.Array:
    """Draws level indices, int32 `[count]`: i with probability `shares[i]`, stratified."""
    draw, shuffle = jax.random.split(key)
    u = (jnp.arange(count) + jax.random.uniform(draw, (count,))) / count
    # The domains alternate in a batch; without the shuffle a stratum would belong to one domain.
    u = jax.random.permutation(shuffle, u)
    cumulative = np.cumsum(shares).astype(np.float32)
    return jnp.minimum(jnp.searchsorted(cumulative, u, side="right"), len(shares) - 1)
