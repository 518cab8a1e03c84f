r"""Preconditioning: a clean image from a network F of any scaling (Karras et al. 2022, eq. 7).

    x = x0 + σ n,   D(x; σ) = c_skip x + c_out F(c_in x, c_noise) ≈ x0                           (1)

Table 1 of the paper, with s = σ_data, L = ln(1 + σ²), B = β₁ - β₀ and u_i = √(1/ᾱ_i - 1):

    kind     c_skip         c_out            c_in           c_noise
    edm      s²/(σ² + s²)   σ s/√(σ² + s²)   1/√(σ² + s²)   ln(σ)/4
    vp       1              -σ               1/√(1 + σ²)    scale (√(β₀² + 2 B L) - β₀)/B
    ve       1              σ                1              ln(factor σ)
    iddpm    1              -σ               1/√(1 + σ²)    the i of the u_i nearest to σ
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Coefficients(NamedTuple):
    """The coefficients of equation (1), each float32 in the shape of σ."""

    c_skip: jax.Array
    c_out: jax.Array
    c_in: jax.Array
    c_noise: jax.Array


def coefficients(kind: str, sigma, constants: Mapping[str, Any]) -> Coefficients:
    """The coefficients of a preconditioning at the noise level σ.

    They keep their digits at every σ in float32. The published code's `vp` does not: at σ = 0.02
    its c_noise is off by 3e-4.

    Args:
      kind: "edm", "vp", "ve" or "iddpm".
      sigma: σ, a scalar or `[B]`, above 0; traced or not.
      constants: of "edm", `sigma_data`; of "vp", `beta_min` (β₀), `beta_max` (β₁) and `scale`; of
        "ve", `factor`; of "iddpm", `alpha_bar`, the decreasing table ᾱ_i. Others are not looked at.

    Raises:
      ValueError: unknown kind.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    one = jnp.ones_like(sigma)
    if kind == "edm":
        data = np.float32(constants["sigma_data"])
        total = jnp.hypot(sigma, data)
        ratio = data / total
        return Coefficients(ratio**2, sigma * ratio, 1 / total, jnp.log(sigma) / 4)
    if kind == "ve":
        return Coefficients(one, sigma, one, jnp.log(np.float32(constants["factor"]) * sigma))
    if kind == "vp":
        noise = np.float32(constants["scale"]) * _vp_time(sigma, constants)
    elif kind == "iddpm":
        noise = _nearest(sigma, constants["alpha_bar"])
    else:
        raise ValueError(f"preconditioning is '{kind}': choose edm, vp, ve or iddpm.")
    return Coefficients(one, -sigma, 1 / jnp.hypot(sigma, 1.0), noise)


def _vp_time(sigma, constants):
    """The t of σ: e^(β₀ t + (β₁ - β₀) t²/2) = 1 + σ², solved without a difference of like terms."""
    low = np.float32(constants["beta_min"])
    slope = np.float32(constants["beta_max"] - constants["beta_min"])
    # ln(1 + σ²) without σ², which overflows, where σ is large.
    small = jnp.minimum(sigma, 1.0)
    large = jnp.maximum(sigma, 1.0)
    log = jnp.log1p(small**2 / large**2) + 2 * jnp.log(large)
    return 2 * log / (jnp.sqrt(low**2 + 2 * slope * log) + low)


def _nearest(sigma, alpha_bar):
    """The index of the level whose u is nearest to σ; the noisier one of two equally near."""
    table = np.asarray(alpha_bar, np.float64)
    levels = np.sqrt((1 - table) / table).astype(np.float32)[::-1]
    distance = jnp.abs(levels.reshape((1,) * sigma.ndim + levels.shape) - sigma[..., None])
    nearest = jnp.argmin(distance, axis=-1)
    return (len(levels) - 1 - nearest).astype(jnp.float32)
