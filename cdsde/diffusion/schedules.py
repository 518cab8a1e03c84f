r"""Noise schedules, and conversions between ε, v and x0.

Forward process, with one noise level per index i = 0 … T-1 (T = 1000 in every published network):

    x_i = √ᾱ_i x0 + √(1-ᾱ_i) e,   e ~ N(0, I),   ᾱ_i = ∏_{j≤i} (1-β_j)                        (1)

The network predicts ε or v (Salimans & Ho 2022); the other quantities follow:

    score = -ε / √(1-ᾱ),   x0 = (x - √(1-ᾱ) ε) / √ᾱ,   v = √ᾱ ε - √(1-ᾱ) x0                 (2)

Images are float32 `[B, H, W, C]` in [-1, 1]; coefficients are scalars or `[B]`, one per image.
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
        """T, the number of noise levels."""
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
        return log_snr(self.alpha_bar)


def log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """log ᾱ/(1-ᾱ) in float64, for ᾱ below 1."""
    exact = np.asarray(alpha_bar).astype(np.float64)
    return np.log(exact) - np.log1p(-exact)


def from_beta(beta: np.ndarray) -> Schedule:
    """Tables from β `[T]`.

    β is rounded to float32, then ᾱ is accumulated in float64, as in the published code (PyTorch's
    cumprod on CPU); accumulation in float32 differs by up to 7e-7.
    """
    beta = np.asarray(beta, np.float64).astype(np.float32)
    alpha = np.float32(1) - beta
    return Schedule(beta, np.cumprod(alpha.astype(np.float64)).astype(np.float32))


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """β linear in i: the schedule of DDPM, ADM, SDEdit, ILVR and EGSDE."""
    return from_beta(np.linspace(beta_start, beta_end, num_steps, dtype=np.float64))


def scaled_linear(
    num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Schedule:
    """√β linear in i: the schedule of SD-1.x, computed in float32 as in its published code."""
    root = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_steps, dtype=np.float32)
    return Schedule(root**2, np.cumprod(1 - root**2, dtype=np.float32))


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """ᾱ_t = cos²((t/T + s)/(1 + s) · π/2), s = `offset`, with β clipped at `max_beta`.

    Nichol & Dhariwal 2021, equation 17.
    """
    return from_beta(_cosine_beta(num_steps, offset, max_beta))


def _cosine_beta(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    t = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    alpha_bar = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def exact_beta(name: str, num_steps: int = 1000) -> np.ndarray:
    """β of guided-diffusion's "linear" or "cosine" noise, float64 `[T]`, which it never rounds.

    The ends of "linear" are those of 1000 levels times 1000/T.

    Raises:
      ValueError: another name.
    """
    if name == "cosine":
        return _cosine_beta(num_steps)
    if name != "linear":
        raise ValueError(f"the noise schedule '{name}' is not known: choose linear or cosine")
    return np.linspace(1e-4, 2e-2, num_steps, dtype=np.float64) * (1000 / num_steps)


SCHEDULES: dict[str, Callable[..., Schedule]] = {"linear": linear, "cosine": cosine}


def expand(coefficient, x):
    """Coefficients `[B]` → `[B, 1, 1, 1]`, a scalar → `[1, 1, 1, 1]`, for images `[B, H, W, C]`."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim == 0:
        return coefficient.reshape((1,) * x.ndim)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def perturb(x0, e, alpha_bar):
    """√ᾱ x0 + √(1-ᾱ) e, equation (1): x0, e `[B, H, W, C]`; ᾱ a scalar or `[B]`."""
    return expand(jnp.sqrt(alpha_bar), x0) * x0 + expand(jnp.sqrt(1 - alpha_bar), x0) * e


def eps_to_x0(x, eps, alpha_bar):
    """ε → clean image x0 = (x - √(1-ᾱ) ε) / √ᾱ, not clipped, equation (2)."""
    return (x - expand(jnp.sqrt(1 - alpha_bar), x) * eps) / expand(jnp.sqrt(alpha_bar), x)


def x0_to_eps(x, x0, alpha_bar):
    """Clean image → ε = (x - √ᾱ x0) / √(1-ᾱ), equation (2)."""
    return (x - expand(jnp.sqrt(alpha_bar), x) * x0) / expand(jnp.sqrt(1 - alpha_bar), x)


def v_to_eps(x, v, alpha_bar):
    """v → ε = √(1-ᾱ) x + √ᾱ v, equation (2)."""
    return expand(jnp.sqrt(1 - alpha_bar), x) * x + expand(jnp.sqrt(alpha_bar), x) * v


def gather(table: np.ndarray, i) -> jax.Array:
    """`table[i]` for a traced integer index i."""
    return jnp.asarray(table)[i]
