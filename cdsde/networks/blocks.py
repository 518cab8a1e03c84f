"""Layers shared by the U-Nets: normalisation, resampling, time embedding, attention.

Contract of all functions: images and feature maps are `[B, H, W, C]`; parameters are float32;
normalisation, softmax and time embeddings are computed in float32 whatever the compute dtype of
the convolutions; `t` is the raw index 0..999 (never rescaled); no output depends on other images of
the batch. Modules have the names of the published PyTorch modules, so that parameter names map by
a rule (`input_blocks_3_0/in_layers_2/kernel` <-> `input_blocks.3.0.in_layers.2.weight`).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks import convolution, normalisation

GROUPS = 32  # normalisation groups of all three published networks
ADM_EPS = 1e-5
DDPM_EPS = 1e-6
LARGE = 2**18  # numbers in an image whose 2x2 sums two threads share on CPUs


def _frequencies(exponents: np.ndarray) -> np.ndarray:
    """exp of float32 exponents, rounded once, as in PyTorch.

    An index of 999 magnifies the last bit of a frequency a thousand times, and both NumPy's float32
    exp and exponents kept in float64 differ from the published embeddings by up to 6e-5.
    """
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def adm_time_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of guided-diffusion: cosines, then sines.

    Args:
      t: `[B]` raw index 0..999, any real dtype.
      width: number of channels, even.

    Returns:
      `[B, width]` float32.
    """
    half = width // 2
    frequencies = _frequencies(-math.log(10000) * np.arange(half, dtype=np.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def ddpm_time_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of DDPM (Ho et al. 2020): sines, then cosines, divisor `half - 1`.

    Args:
      t: `[B]` raw index 0..999, any real dtype.
      width: number of channels, even, at least 4.

    Returns:
      `[B, width]` float32.
    """
    half = width // 2
    step = math.log(10000) / (half - 1)
    frequencies = _frequencies(np.arange(half, dtype=np.float32) * -step)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def batch_of_indices(t: jax.Array | float, batch: int) -> jax.Array:
    """`t` as float32 `[batch]`, from a scalar or `[batch]`.

    Raises:
      ValueError: any other shape.
    """
    t = jnp.asarray(t, jnp.float32)
    if t.shape not in ((), (batch,)):
        raise ValueError(
            f"t has shape {t.shape} for a batch of {batch}: pass a scalar or shape ({batch},)."
        )
    return jnp.broadcast_to(t, (batch,))


def with_fourier_features(x: jax.Array, exponents: Sequence[int]) -> jax.Array:
    """x, and sin(2ⁿπx) and cos(2ⁿπx) for each n, `[B, H, W, C]` → `[B, H, W, C(1 + 2N)]`.

    At a flat colour where sin(2ⁿπx) = 0, such as ±1, the features are noise times 2ⁿπ: without them
    a network has to amplify what it sees 100-fold at the lowest noise, and learns late that paper
    is exactly white. Source: VDM (Kingma et al. 2021).
    """
    angles = [(2**n * math.pi) * x.astype(jnp.float32) for n in exponents]
    waves = [wave(a).astype(x.dtype) for a in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], axis=-1)


def check_image(x: jax.Array, levels: int) -> None:
    """Raises ValueError unless `x` is `[B, H, W, C]` with sides that `levels` halvings divide."""
    factor = 2 ** (levels - 1)
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"input has shape {x.shape}: pass [B, H, W, C] with H and W divisible by {factor} "
            f"({levels} resolution levels)."
        )


def joined(h: jax.Array, skip: jax.Array) -> jax.Array:
    """The channels of both, `[B, H, W, C]`, `[B, H, W, D]` -> `[B, H, W, C + D]`.

    Joined as rows: XLA's CPU compiler joins images pixel by pixel, where a product reads them.
    """
    rows = [a.reshape(-1, a.shape[-1]) for a in (h, skip)]
    return jnp.concatenate(rows, axis=-1).reshape(*h.shape[:-1], -1)


@jax.custom_vjp
def downsample_mean(x: jax.Array) -> jax.Array:
    """2x2 average, `[B, H, W, C]` -> `[B, H/2, W/2, C]`."""
    return _sums(x) / 4


@jax.custom_vjp
def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeats each pixel 2x2, `[B, H, W, C]` -> `[B, 2H, 2W, C]`."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def _sums(x):
    """2x2 sums, `[B, H, W, C]` -> `[B, H/2, W/2, C]`, added in float32."""
    if math.prod(x.shape[1:]) < LARGE:
        return _sums_at_once(x)
    return jax.lax.platform_dependent(x, cpu=_sums_by_rows, default=_sums_at_once)


def _sums_at_once(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).sum(axis=(2, 4))


def _sums_by_rows(x):
    """XLA's CPU compiler gives the sums of one image to one thread, but additions to several."""
    b, h, w, c = x.shape
    rows = x.reshape(b, h // 2, 2, w * c).astype(jnp.float32)
    pairs = (rows[:, :, 0] + rows[:, :, 1]).reshape(b, h // 2, w // 2, 2, c)
    return (pairs[:, :, :, 0] + pairs[:, :, :, 1]).astype(x.dtype)


downsample_mean.defvjp(
    lambda x: (downsample_mean(x), None), lambda _, g: (upsample_nearest(g / 4),)
)
upsample_nearest.defvjp(lambda x: (upsample_nearest(x), None), lambda _, g: (_sums(g),))


# PyTorch's default for convolutions and linear layers: uniform with bound 1/sqrt(fan_in), biases
# included. Flax's default starts biases at zero.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> nn.initializers.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: jax.Array,
    features: int,
    *,
    name: str,
    kernel: int = 3,
    stride: int = 1,
    padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
    zero: bool = False,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Convolution `[B, H, W, C]` -> `[B, H', W', features]` as a submodule of the caller.

    `padding` is explicit because "SAME" differs from PyTorch's padding at stride 2; a 1x1 kernel
    does not pad. `zero` starts kernel and bias at zero.
    """
    zeros = nn.initializers.zeros
    return convolution.Conv(
        features,
        kernel,
        padding if kernel > 1 else ((0, 0), (0, 0)),
        stride,
        dtype=dtype,
        kernel_init=zeros if zero else _kernel_init,
        bias_init=zeros if zero else _bias_init(kernel * kernel * x.shape[-1]),
        name=name,
    )(x)


def dense(
    x: jax.Array, features: int, *, name: str, zero: bool = False, dtype: Any = jnp.float32
) -> jax.Array:
    """Linear layer over the last axis (also a 1x1 convolution) as a submodule of the caller."""
    zeros = nn.initializers.zeros
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=zeros if zero else _kernel_init,
        bias_init=zeros if zero else _bias_init(x.shape[-1]),
        name=name,
    )(x)


class GroupNorm(nn.Module):
    """Group normalisation over 32 groups, optionally modulated and followed by SiLU.

    The number of groups is smaller if groups would have fewer than `group_channels` channels. One
    channel per group removes the mean of each channel, and so the colour of the whole image; Karras
    et al. 2022 (EDM) use at least 4.
    """

    eps: float
    silu: bool = False
    group_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, modulation: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """Normalises `x`.

        Args:
          x: `[B, H, W, C]` or `[B, T, C]`, C divisible by the number of groups.
          modulation: `(scale, shift)`, each `[B, C]`; the result is `norm * (1 + scale) + shift`.

        Returns:
          The shape of `x`, in `dtype`.

        Raises:
          ValueError: C is not divisible by the number of groups.
        """
        shape, channels = x.shape, x.shape[-1]
        groups = min(GROUPS, channels // self.group_channels)
        alone = self.group_channels == 1 and channels < GROUPS
        if groups == 0 or channels % groups or alone:
            raise ValueError(
                f"group normalisation in '{'/'.join(self.path)}' has {channels} channels: choose "
                f"channels and channel_mult so that every width is divisible by {groups or GROUPS}."
            )
        gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None, :]
        offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, :]
        if modulation is not None:
            scale, shift = (m.astype(jnp.float32) for m in modulation)
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        x = x.reshape(shape[0], -1, channels)
        x = normalisation.normalise(x, gain, offset, groups, self.eps, self.silu)
        return x.reshape(shape).astype(self.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention, softmax(q kᵀ / √D) v.

    q and k are each multiplied by D^(-1/4), which in low precision overflows later than dividing
    their product. Products accumulate and the softmax runs in float32.

    Args:
      q, k, v: `[B, T, heads, D]`; q may have fewer positions.

    Returns:
      The shape of `q`, in the dtype of `v`.
    """
    factor = q.shape[-1] ** -0.25
    return _attend(q * factor, k * factor, v)


@jax.custom_vjp
def _attend(q, k, v):
    """softmax(q kᵀ) v; the products read the weights, the largest array, as they are."""
    weights = _attention_weights(q, k)
    return _heads_last(weights.astype(v.dtype) @ _heads_first(v))


def _heads_first(x):
    return x.transpose(0, 2, 1, 3)


_heads_last = _heads_first  # `[B, heads, T, D]` -> `[B, T, heads, D]`


def _attention_weights(q, k):
    k = k.transpose(0, 2, 3, 1)
    logits = jnp.matmul(_heads_first(q), k, preferred_element_type=jnp.float32)
    return nn.softmax(logits, axis=-1)


def _attend_backward(residuals, g):
    q, k, v = residuals
    weights = _attention_weights(q, k)
    turned = v.transpose(0, 2, 3, 1)
    to_weights = jnp.matmul(_heads_first(g), turned, preferred_element_type=jnp.float32)
    mean = jnp.sum(to_weights * weights, axis=-1, keepdims=True)
    to_logits = (weights * (to_weights - mean)).astype(q.dtype)
    to_q = _heads_last(to_logits @ _heads_first(k))
    return to_q, _summed_over_t(q, to_logits), _summed_over_t(g, weights.astype(v.dtype))


def _summed_over_t(x, weights):
    """Σ_t x[b, t, h, c] w[b, h, t, s], `[B, S, heads, D]`; x is turned, which is the smaller."""
    return (x.transpose(0, 2, 3, 1) @ weights).transpose(0, 3, 1, 2)


_attend.defvjp(lambda q, k, v: (_attend(q, k, v), (q, k, v)), _attend_backward)


def split_qkv(qkv: jax.Array, heads: int, new_order: bool) -> tuple[jax.Array, ...]:
    """Splits `[B, T, 3C]` into q, k, v of `[B, T, heads, C/heads]`.

    Channels are ordered [head, (q, k, v), channel] in the old order of guided-diffusion and
    [(q, k, v), head, channel] in the new one.
    """
    b, tokens, width = qkv.shape
    order = (3, heads) if new_order else (heads, 3)
    qkv = qkv.reshape(b, tokens, *order, width // (3 * heads))
    return tuple(jnp.moveaxis(qkv, 2 if new_order else 3, 0))


def num_heads_for(channels: int, num_heads: int, num_head_channels: int) -> int:
    """Number of attention heads for `channels`, from `num_head_channels` unless it is -1.

    Raises:
      ValueError: `channels` is not divisible by the heads or by the width of a head.
    """
    divisor = num_heads if num_head_channels == -1 else num_head_channels
    if divisor < 1 or channels % divisor:
        name = "num_heads" if num_head_channels == -1 else "num_head_channels"
        raise ValueError(
            f"attention over {channels} channels cannot be split with {name}={divisor}: choose a "
            f"divisor of {channels} (num_head_channels=-1 makes num_heads count)."
        )
    return num_heads if num_head_channels == -1 else channels // num_head_channels
