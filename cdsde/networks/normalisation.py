r"""Group normalisation, with a gradient for CPUs; other devices use the gradient that JAX derives.

With n = (x - μ) r, r = 1/√(σ² + eps), μ and σ² over the positions and channels of a group,

    z = n G + O,   y = z or silu(z).                                                             (1)

For a cotangent ∂y, with ∂z = ∂y or ∂y silu'(z), and means over a group's P positions and channels:

    ∂O = Σ_p ∂z,   ∂G = Σ_p ∂z n                                                                 (2)
    ∂x = r (∂z G - mean(∂z G) - n mean(∂z G n)) = r (∂z G - mean_c(G ∂O)/P - n mean_c(G ∂G)/P)   (3)

So two sums over positions are enough for all three gradients, and x is all that is kept. JAX
derives more sums and keeps more arrays of the size of x.

Four forms are for XLA's CPU compiler, which computes again at each use what it takes for cheap:

- Means over the channels of a group are products with a small matrix. What comes out of a product
  is stored, and loops over positions read it in a straight line.
- SiLU is z/(1 + exp(-z)): XLA counts a division as costly and stores its result, which the next
  convolution and its gradient read.
- A long sum is cut into parts after its summands are stored. A sum of a short run of positions is
  not, and computes its summands; the runs are then added by a product with ones.
- Sums over images are products with ones. As sums they would be merged with those over positions.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cdsde.networks.convolution import summed

RUN = 32  # positions; XLA cuts longer sums


def deviations(x: jax.Array, groups: int, eps: float) -> tuple[jax.Array, jax.Array]:
    """The factors of group normalisation: `x - mean` and `1 / sqrt(variance + eps)`.

    Statistics are in float32 and take two passes: E[x^2] - E[x]^2 would lose the digits that parity
    with published code needs. Means run over positions first, channel by channel; on CPU this keeps
    the contiguous axis whole and is several times faster than reducing a view of the groups.

    Args:
      x: `[B, P, C]`, P positions.
      groups: number of groups of neighbouring channels, a divisor of C.
      eps: added to the variance.

    Returns:
      `[B, P, C]` and `[B, C]`, float32.
    """
    x = x.astype(jnp.float32)
    x = x - group_mean(x.mean(axis=1), groups)[:, None, :]
    squares = lax.platform_dependent(
        x, cpu=lambda x: _in_runs(jnp.square(x)), default=lambda x: jnp.square(x).sum(axis=1)
    )
    return x, lax.rsqrt(group_mean(squares / x.shape[1], groups) + eps)


def _in_runs(x: jax.Array) -> jax.Array:
    """The sum over positions, `[B, P, C]` -> `[B, C]`, first over runs of them."""
    batch, positions, channels = x.shape
    run = math.gcd(positions, RUN)
    parts = x.reshape(batch, positions // run, run, channels).sum(axis=2)
    ones = jnp.ones((batch, 1, positions // run), x.dtype)
    return jnp.matmul(ones, parts, precision=lax.Precision.HIGHEST)[:, 0]


def group_mean(x: jax.Array, groups: int) -> jax.Array:
    """`[B, C]` -> `[B, C]`: replaces each channel by the mean of its group."""
    channels = x.shape[1]
    size = channels // groups
    # Of traced numbers: as a constant, each layer would hold C² of them.
    group = lax.iota(jnp.int32, channels) // size
    same = jnp.where(group[:, None] == group[None], jnp.asarray(1 / size, x.dtype), 0)
    return jnp.matmul(x, same, precision=lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise(
    x: jax.Array, gain: jax.Array, offset: jax.Array, groups: int, eps: float, silu: bool
) -> jax.Array:
    """Equation (1), in float32.

    Args:
      x: `[B, P, C]`, P positions.
      gain, offset: G and O, `[B, C]` or `[1, C]`, float32.
      groups: number of groups of neighbouring channels, a divisor of C.
      eps: added to the variance.
      silu: whether SiLU follows.

    Returns:
      `[B, P, C]` float32.
    """
    z = _affine(x, gain, offset, groups, eps)
    return z / (1 + jnp.exp(-z)) if silu else z


def _affine(x, gain, offset, groups, eps):
    x, inverse = deviations(x, groups, eps)
    return x * (gain * inverse)[:, None, :] + offset[:, None, :]


def _forward(x, gain, offset, groups, eps, silu):
    return normalise(x, gain, offset, groups, eps, silu), (x, gain, offset)


def _backward(groups, eps, silu, residuals, g):
    explicit = functools.partial(_explicit_gradients, groups, eps, silu)
    default = functools.partial(_default_gradients, groups, eps, silu)
    return lax.platform_dependent(*residuals, g, cpu=explicit, default=default)


def _default_gradients(groups, eps, silu, x, gain, offset, g):
    return jax.vjp(lambda *args: _plain(*args, groups, eps, silu), x, gain, offset)[1](g)


def _plain(x, gain, offset, groups, eps, silu):
    """Equation (1) for JAX to differentiate, whose derivative of z/(1 + exp(-z)) overflows."""
    z = _affine(x, gain, offset, groups, eps)
    return nn.silu(z) if silu else z


def _explicit_gradients(groups, eps, silu, x, gain, offset, g):
    positions, rows = x.shape[1], gain.shape[0]
    n, inverse = deviations(x, groups, eps)
    n = n * inverse[:, None, :]
    if silu:
        z = n * gain[:, None, :] + offset[:, None, :]
        s = nn.sigmoid(z)
        g = g * (s * (1 + z * (1 - s)))
    # The first sum stores g, which the rest reads.
    to_offset, to_gain = g.sum(axis=1), _in_runs(g * n)
    mean = group_mean(gain * to_offset, groups) / positions
    slope = group_mean(gain * to_gain, groups) / positions
    to_x = g * gain[:, None, :] - mean[:, None, :] - n * slope[:, None, :]
    to_x = (inverse[:, None, :] * to_x).astype(x.dtype)
    if rows == 1:  # one gain for all images
        to_gain, to_offset = summed(to_gain), summed(to_offset)
    return to_x, to_gain, to_offset


normalise.defvjp(_forward, _backward)
