r"""Energies: functions `(y, x_t, i) -> [B]` that guidance minimises over y; x_t is a constant.

The guided sampler lowers Σ_k λ_k E_k(y, x_t, i). y and x_t are float32 states `[B, H, W, C]` at the
same level index i (a scalar). Each image has its own energy: images of a batch are independent.

    domain (EGSDE's E_s)        mean over positions of cos(F(y), F(x_t)), or -‖F(y) - F(x_t)‖²   (1)
    content (EGSDE's E_i)       ‖φ(y) - φ(x_t)‖², or -mean over positions of cos(φ(y), φ(x_t))   (2)
    contrastive                 -sim(E(y), E(x_t)) with the contrastive encoder E                (3)
    patch contrast              mean over positions p of                                        (4)
                                -log exp(cos(E_p(y), E_p(x_t))/τ) / Σ_q exp(cos(E_p(y), E_q(x_t))/τ)
    contrast of domains         mean over positions p of u(F_p(y)) · (s̄ - t̄), u(v) = v/‖v‖       (5)

F denotes features of a time-dependent network: the domain classifier in (1), the contrastive
encoder in (5). s̄ and t̄ are the means of u(F_p) over source and target images perturbed to level i.
φ is the low-pass filter. Sources: (1) and (2) Zhao et al. 2022 (EGSDE, equations 8-11), with ILVR's
resizer as φ; (3) arXiv 2510.03821; (4) Park et al. 2020 (CUT, equation 4). (5) is specific to this
project: it is the limit of InfoNCE, -τ log Σ_k exp(u·t_k/τ) / Σ_k exp(u·s_k/τ), for large τ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Energy = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


# ── low-pass φ ──────────────────────────────────────────────────────────────────────────────────


def _resize_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Antialiased linear resampling `[size_out, size_in]`, float64, borders mirrored.

    The weights of each output pixel sum to 1, including taps outside the image. The weight of an
    outside tap is added to its mirror pixel (edge repeated: … 1 0 | 0 1 …).
    """
    ratio = size_in / size_out
    width = max(ratio, 1.0)  # half-width of the triangle
    matrix = np.zeros((size_out, size_in))
    for o in range(size_out):
        centre = (o + 0.5) * ratio - 0.5
        taps = np.arange(int(np.floor(centre - width)), int(np.ceil(centre + width)) + 1)
        weights = np.maximum(0.0, 1.0 - np.abs(taps - centre) / width)
        period = np.mod(taps, 2 * size_in)
        mirrored = np.where(period < size_in, period, 2 * size_in - 1 - period)
        np.add.at(matrix[o], mirrored, weights / weights.sum())
    return matrix


@lru_cache(maxsize=64)
def lowpass_matrix(size: int, factor: int) -> np.ndarray:
    """Matrix of φ along one axis, `[size, size]` float32: down by `factor`, then up again.

    Raises:
      ValueError: `factor` does not divide `size`, or leaves fewer than 2 pixels.
    """
    if factor < 1 or size % factor or size // factor < 2:
        raise ValueError(
            f"a low-pass of factor {factor} needs a side that it divides with at least 2 left, "
            f"not {size}"
        )
    small = size // factor
    return (_resize_matrix(small, size) @ _resize_matrix(size, small)).astype(np.float32)


def lowpass(x: jax.Array, factor: int) -> jax.Array:
    """φ(x), the low-pass of equation (2): `[B, H, W, C]` → `[B, H, W, C]`, two matrix products."""
    rows = lowpass_matrix(x.shape[1], factor)
    columns = lowpass_matrix(x.shape[2], factor)
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("ow,bhwc->bhoc", columns, x, precision=jax.lax.Precision.HIGHEST)


# ── similarities ────────────────────────────────────────────────────────────────────────────────


def unit(x: jax.Array, axis: int | tuple[int, ...] = -1, eps: float = 1e-10) -> jax.Array:
    """x / max(‖x‖, eps) along `axis`; the gradient at 0 is finite."""
    squared = jnp.sum(x * x, axis=axis, keepdims=True)
    safe = squared > eps**2
    return x / jnp.where(safe, jnp.sqrt(jnp.where(safe, squared, 1.0)), eps)


def cosine_map(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine over C at each position, averaged over positions: two `[B, ..., C]` → `[B]`."""
    similarity = jnp.sum(unit(a) * unit(b), axis=-1)
    return similarity.reshape(similarity.shape[0], -1).mean(axis=1)


def squared_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum of squared differences: two `[B, ...]` → `[B]`."""
    return jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim)))


# ── energies ────────────────────────────────────────────────────────────────────────────────────


def domain(features: Callable, similarity: str = "cosine") -> Energy:
    """Domain energy, equation (1): similarity to the source in domain-specific features.

    Args:
      features: `(x, i) -> [B, h, w, C]` of the domain classifier.
      similarity: "cosine" or "neg_l2".
    """
    compare = {"cosine": cosine_map, "neg_l2": lambda a, b: -squared_distance(a, b)}[similarity]

    def energy(y, x_t, i):
        return compare(features(y, i), jax.lax.stop_gradient(features(x_t, i)))

    return energy


def of_classifier(classifier: Callable) -> Callable:
    """The features `(x, i) -> [B, h, w, C]` of a domain classifier, for `domain`."""
    return lambda x, i: classifier(x, i, head=False)[1]


def content(factor: int, similarity: str = "neg_l2") -> Energy:
    """Content energy, equation (2): distance between low-passed images, which keeps the layout.

    Args:
      factor: N of the low-pass φ.
      similarity: the published name. "neg_l2" gives the squared distance; "cosine" gives minus the
        cosine of the colours at each position, averaged over positions.
    """
    compare = {"neg_l2": squared_distance, "cosine": lambda a, b: -cosine_map(a, b)}[similarity]

    def energy(y, x_t, i):
        return compare(lowpass(y, factor), lowpass(x_t, factor))

    return energy


def contrastive(encode: Callable, encoded: bool = False) -> Energy:
    """Contrastive energy, equation (3): distance in the encoder's domain-invariant space.

    Args:
      encode: `(x, i) -> [B, D]` or `[B, h, w, C]`; for a map, the cosine is computed at each
        position and averaged.
      encoded: whether the reference is given as the encoder's output.
    """

    def energy(y, x_t, i):
        reference = x_t if encoded else jax.lax.stop_gradient(encode(x_t, i))
        return -cosine_map(encode(y, i), reference)

    return energy


def patch_nce(queries: jax.Array, keys: jax.Array, temperature: float) -> jax.Array:
    """Cross-entropy of each patch, equation (4): unit vectors, two `[B, P, C]` → `[B, P]`."""
    logits = jnp.einsum("bpc,bqc->bpq", queries, keys) / temperature
    return jax.nn.logsumexp(logits, axis=-1) - jnp.einsum("bpp->bp", logits)


def patch_contrast(encode: Callable, temperature: float = 0.07, encoded: bool = False) -> Energy:
    """Patch contrast, equation (4): each position should match the source at the same position.

    The source's other positions are the negatives.

    Args:
      encode: `(x, i) -> [B, h, w, C]`.
      temperature: τ; with a small τ only the hardest negative counts.
      encoded: whether the reference is given as the encoder's output.
    """

    def energy(y, x_t, i):
        a, b = encode(y, i), x_t if encoded else jax.lax.stop_gradient(encode(x_t, i))
        a, b = (unit(z.reshape(z.shape[0], -1, z.shape[-1])) for z in (a, b))
        return jnp.mean(patch_nce(a, b, temperature), axis=-1)

    return energy


class DomainDirection(NamedTuple):
    """Linear direction that separates two domains in a network's features, for each noise level.

    Attributes:
      levels: `[L]` float, indices of the levels to which the domains' images were perturbed.
      normal: `[L, D]`, s̄ - t̄ of equation (5) at each level, with one scale for all levels.
    """

    levels: Any
    normal: Any


def domain_contrast(features: Callable, direction: DomainDirection) -> Energy:
    """Contrast of domains, equation (5): pulls the features from the source to the target domain.

    Args:
      features: `(x, i) -> [B, h, w, D]`.
      direction: `[L, D]`; the row of the level nearest to i is used.
    """

    levels, normal = map(jnp.asarray, direction)

    def energy(y, x_t, i):
        nearest = jnp.argmin(jnp.abs(levels - i))
        return jnp.mean(unit(features(y, i)) @ normal[nearest], axis=(1, 2))

    return energy


def total(energies: Sequence[Energy]) -> Callable:
    """The weighted sum of energies, `(y, references, i, weights) -> scalar`; its gradient guides.

    `references` and `weights` contain x_t and λ of each energy. The sum runs over the batch too: a
    mean would divide the guidance by B.
    """

    def energy(y, references, i, weights):
        terms = zip(energies, references, weights, strict=True)
        return sum(w * jnp.sum(e(y, x_t, i)) for e, x_t, w in terms)

    return energy
