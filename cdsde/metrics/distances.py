r"""Distances between two sets of feature vectors (FID, KID, ...), in float64 on the host.

    Fréchet   |μ_a - μ_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)        Heusel et al. 2017, equation (6)
    kernel    unbiased MMD², k(x, y) = (x·y/D + 1)³                Bińkowski et al. 2018, section 4
    precision, recall   share of one set within the other's k-nearest-neighbour balls
                                                                Kynkäänniemi et al. 2019, section 3

`Moments` has sums, not means, so that the moments of parts of a set can be added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Moments of a set of N features of D numbers, float64, for the Fréchet distance.

    Attributes:
      count: N.
      total: Σ f, `[D]`.
      outer: Σ f fᵀ, `[D, D]`.
    """

    count: int
    total: np.ndarray
    outer: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Computes the moments of features `[N, D]` of any float dtype; N may be 0."""
    f = np.asarray(features, np.float64)
    return Moments(len(f), f.sum(0), f.T @ f)


def add_moments(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two sets."""
    return Moments(a.count + b.count, a.total + b.total, a.outer + b.outer)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance between Gaussians with the moments of two sets (covariances over N - 1).

    The trace of (C_a C_b)^½ is computed from the eigenvalues of the symmetric Sᵀ C_b S, with
    S Sᵀ = C_a. This is exact even where C is singular, with fewer features than dimensions.

    Raises:
      ValueError: a set has fewer than 2 features.
    """
    if min(a.count, b.count) < 2:
        raise ValueError(
            f"a Fréchet distance needs 2 images a side, there are {a.count} and {b.count}"
        )
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(_rounded_up(values))
    cross = np.linalg.eigvalsh(root.T @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sum(np.sqrt(_rounded_up(cross)))
    return float(np.sum((mean_a - mean_b) ** 2) + trace)


def kernel_statistic(a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns `positions -> unbiased MMD²` of the features a[positions] and b; it may be negative.

    The kernels are computed once; memory grows with N² and N, not with M². The mean is over all
    pairs, not over random subsets as in the published code, which removes the sampling noise.

    Args:
      a: features `[N, D]`.
      b: features `[M, D]`.

    Raises:
      ValueError: a set has fewer than 2 features.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"a kernel distance needs 2 images a side, there are {len(a)} and {len(b)}"
        )
    within_a, across = _kernel(a, a), _kernel(a, b).mean(1)
    total = sum(_kernel(b[k : k + 1024], b).sum() for k in range(0, len(b), 1024))
    diagonal = np.sum((np.sum(b**2, 1) / b.shape[1] + 1) ** 3)
    within_b = (total - diagonal) / (len(b) * (len(b) - 1))

    def statistic(positions):
        k, n = within_a[np.ix_(positions, positions)], len(positions)
        within = (k.sum() - np.trace(k)) / (n * (n - 1))
        return float(within + within_b - 2 * across[positions].mean())

    return statistic


def precision_recall(
    generated: np.ndarray, real: np.ndarray, neighbours: int = 3
) -> tuple[float, float]:
    """Improved precision and recall: `(precision, recall)`, each in [0, 1].

    Args:
      generated: features `[N, D]`.
      real: features `[M, D]`.
      neighbours: k of the nearest-neighbour balls.

    Raises:
      ValueError: a set has at most `neighbours` features.
    """
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more images than "
            f"{len(generated)} and {len(real)}"
        )
    across = _squared_distances(generated, real)
    radius = [
        np.partition(_squared_distances(x, x), neighbours, axis=1)[:, neighbours]
        for x in (generated, real)
    ]
    precision = np.mean(np.any(across <= radius[1][None, :], axis=1))
    recall = np.mean(np.any(across <= radius[0][:, None], axis=0))
    return float(precision), float(recall)


def jackknife_interval(
    statistic: Callable[[np.ndarray], float], count: int, groups: int = 20, seed: int = 0
) -> tuple[float, float]:
    """95% interval of a statistic of a set, by the delete-a-group jackknife.

    A bootstrap repeats images, which biases the Fréchet and the kernel distance.

    Args:
      statistic: `positions [n] -> value` on these elements of the set.
      count: size of the set.
      groups: number of random groups; clipped to `count`.
      seed: seed of the division into groups.

    Returns:
      `(low, high)`.
    """
    groups = min(groups, count)
    parts = np.array_split(np.random.default_rng(seed).permutation(count), groups)
    everything = np.arange(count)
    value = statistic(everything)
    left_out = np.array([statistic(np.setdiff1d(everything, part)) for part in parts])
    deviation = np.sqrt((groups - 1) / groups * np.sum((left_out - left_out.mean()) ** 2))
    return float(value - 1.96 * deviation), float(value + 1.96 * deviation)


def _gaussian(m: Moments) -> tuple[np.ndarray, np.ndarray]:
    mean = m.total / m.count
    return mean, (m.outer - m.count * np.outer(mean, mean)) / (m.count - 1)


def _rounded_up(eigenvalues: np.ndarray) -> np.ndarray:
    """Sets eigenvalues within rounding error of 0 to 0, because their roots would not be small."""
    floor = len(eigenvalues) * np.finfo(np.float64).eps * np.max(np.abs(eigenvalues), initial=0.0)
    return np.where(eigenvalues > floor, eigenvalues, 0.0)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None, :] - 2 * a @ b.T
    if a is b:
        np.fill_diagonal(squares, 0.0)
    return np.maximum(squares, 0.0)
