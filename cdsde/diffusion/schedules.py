r"""The VP diffusion in its two views, and the conversions between ε, score and x0.

Forward process, with one noise level per index i = 0 … T-1 (T = 1000 in every published network):

    x_i = √ᾱ_i x0 + √(1-ᾱ_i) e,   e ~ N(0, I),   ᾱ_i = ∏_{j≤i} (1-β_j)              (1)

and its continuous limit on t in [0, 1],

    dx = -½ β(t) x dt + √β(t) dw,   β(t) = β_min + t (β_max - β_min)                 (2)
    ᾱ(t) = exp(-½ t² (β_max - β_min) - t β_min)                                      (3)

The two views meet at t = (i+1)/T. The network predicts ε; the others follow:

    score = -ε / √(1-ᾱ),   x0 = (x - √(1-ᾱ) ε) / √ᾱ                                  (4)

Names: `signal` = √ᾱ, `noise` = √(1-ᾱ). Contract of every function here: images are
float32 `[B, H, W, C]` in [-1, 1]; per-image coefficients are scalars or `[B]`; nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
    """Tables of the discrete process, float32, index i = 0 … T-1.

    Attributes:
      beta: `[T]`, β_i in (0, 1).
      alpha_bar: `[T]`, ᾱ_i of equation (1), decreasing.
    """

    beta: np.ndarray
    alpha_bar: np.ndarray

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.beta)

    @property
    def signal(self) -> np.ndarray:
        """√ᾱ_i, `[T]` float32."""
        return np.sqrt(self.alpha_bar)

    @property
    def noise(self) -> np.ndarray:
        """√(1-ᾱ_i), `[T]` float32."""
        return np.sqrt(np.float32(1) - self.alpha_bar)

    @property
    def log_snr(self) -> np.ndarray:
        """log ᾱ_i/(1-ᾱ_i), `[T]` float64, decreasing."""
        exact = self.alpha_bar.astype(np.float64)
        return np.log(exact) - np.log1p(-exact)


def from_beta(beta: np.ndarray) -> Schedule:
    """Tables from β `[T]`.

    β is rounded to float32 first and ᾱ accumulated in float64: so did the published code
    (PyTorch's cumprod on CPU), and a float32 accumulation is off by up to 7e-7.
    """
    beta = np.asarray(beta, np.float64).astype(np.float32)
    alpha = np.float32(1) - beta
    return Schedule(beta, np.cumprod(alpha.astype(np.float64)).astype(np.float32))


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """β linear in i: the schedule of DDPM, ADM, SDEdit, ILVR and EGSDE."""
    return from_beta(np.linspace(beta_start, beta_end, num_steps, dtype=np.float64))


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """ᾱ a squared cosine (Nichol & Dhariwal 2021, equation 17), β clipped at `max_beta`."""
    t = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    alpha_bar = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_beta(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


SCHEDULES: dict[str, Callable[..., Schedule]] = {"linear": linear, "cosine": cosine}


def index_to_time(i, num_steps: int = 1000):
    """Index 0 … T-1 → t in (0, 1]."""
    return (i + 1) / num_steps


def time_to_index(t, num_steps: int = 1000):
    """t in [0, 1] → the (fractional) index that a discrete network is told."""
    return t * num_steps - 1


def alpha_bar_continuous(t, beta_min: float = 0.1, beta_max: float = 20.0):
    """ᾱ(t) of the linear VP SDE, equation (3); t in [0, 1]."""
    return jnp.exp(-0.5 * t**2 * (beta_max - beta_min) - t * beta_min)


def drift_diffusion(x, t, beta_min: float = 0.1, beta_max: float = 20.0):
    """Drift `[B, H, W, C]` and diffusion (scalar or `[B]`) of equation (2) at t in [0, 1]."""
    beta = beta_min + t * (beta_max - beta_min)
    return -0.5 * expand(beta, x) * x, jnp.sqrt(beta)


def expand(coefficient, x):
    """Coefficients `[B]` → `[B, 1, 1, 1]` for images `[B, H, W, C]`; scalars get rank only."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim == 0:
        return coefficient.reshape((1,) * x.ndim)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def perturb(x0, e, alpha_bar):
    """Sample of the perturbation kernel, equation (1): x0, e `[B, H, W, C]`; ᾱ scalar or `[B]`."""
    return expand(jnp.sqrt(alpha_bar), x0) * x0 + expand(jnp.sqrt(1 - alpha_bar), x0) * e


def eps_to_score(eps, alpha_bar):
    """ε → ∇ log p, equation (4)."""
    return -eps / expand(jnp.sqrt(1 - alpha_bar), eps)


def score_to_eps(score, alpha_bar):
    """∇ log p → ε, equation (4)."""
    return -score * expand(jnp.sqrt(1 - alpha_bar), score)


def eps_to_x0(x, eps, alpha_bar):
    """ε → predicted clean image (not clipped), equation (4)."""
    return (x - expand(jnp.sqrt(1 - alpha_bar), x) * eps) / expand(jnp.sqrt(alpha_bar), x)


def x0_to_eps(x, x0, alpha_bar):
    """Clean image → the ε that leads from it to x, equation (4)."""
    return (x - expand(jnp.sqrt(alpha_bar), x) * x0) / expand(jnp.sqrt(1 - alpha_bar), x)


def v_to_eps(x, v, alpha_bar):
    """v = √ᾱ ε - √(1-ᾱ) x0 (Salimans & Ho 2022) → ε = √(1-ᾱ) x + √ᾱ v."""
    return expand(jnp.sqrt(1 - alpha_bar), x) * x + expand(jnp.sqrt(alpha_bar), x) * v


def eps_to_v(x, eps, alpha_bar):
    """ε → v, the inverse of `v_to_eps`."""
    return (eps - expand(jnp.sqrt(1 - alpha_bar), x) * x) / expand(jnp.sqrt(alpha_bar), x)


def gather(table: np.ndarray, i) -> jax.Array:
    """`table[i]` for a traced integer index i."""
    return jnp.asarray(table)[i]
