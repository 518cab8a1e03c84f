"""DDPM++ and NCSN++ (Song et al. 2021), in the layout of score_sde_pytorch.

Images are `[B, H, W, C]`, H and W divisible by 2**(len(channel_mult) - 1); parameters are float32;
normalisation, embeddings and the last layers are computed in float32 whatever the compute dtype of
the other convolutions and products. The published code numbers its modules in the order of their
calls (`all_modules.7.Conv_0.weight`), and so does this one.
Source: github.com/yang-song/score_sde_pytorch, models/ncsnpp.py with `resblock_type="biggan"`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks import blocks, fir
from cdsde.networks.stable_diffusion import layers

EPS = 1e-6
ACTIVATIONS: dict[str, Callable] = {
    "swish": nn.silu,
    "relu": nn.relu,
    "elu": nn.elu,
    "lrelu": lambda x: nn.leaky_relu(x, 0.2),
}
CHOICES = {
    "embedding": ("positional", "fourier"),
    "progressive": ("none", "output_skip"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "nonlinearity": tuple(ACTIVATIONS),
}


def group_norm(x: jax.Array, name: str, dtype: Any) -> jax.Array:
    """Normalises groups of at least 4 channels, 32 groups at most."""
    groups = max(1, min(x.shape[-1] // 4, 32))
    if x.shape[-1] % groups:
        raise ValueError(
            f"group normalisation in '{name}' cannot split {x.shape[-1]} channels into {groups} "
            "groups: choose channels and channel_mult so that every width is divisible."
        )
    return layers.GroupNorm(groups, EPS, dtype, name=name)(x)


class Fourier(nn.Module):
    """Random Fourier features of ln σ; the frequencies W `[channels]` are not trained."""

    channels: int

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        """`[B]` -> `[B, 2 channels]`, sines, then cosines."""
        w = self.param("W", nn.initializers.normal(16.0), (self.channels,), jnp.float32)
        angles = jnp.log(sigma)[:, None] * w[None, :] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class NIN(nn.Module):
    """A linear layer whose matrix W is stored as (in, out)."""

    features: int
    zero: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., C]` -> `[..., features]`."""
        zeros = nn.initializers.zeros
        init = zeros if self.zero else nn.initializers.variance_scaling(0.1, "fan_avg", "uniform")
        w = self.param("W", init, (x.shape[-1], self.features), jnp.float32)
        b = self.param("b", zeros, (self.features,), jnp.float32)
        y = x.astype(self.dtype) @ w.astype(self.dtype)
        return y + b.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class ResBlock(nn.Module):
    """Residual block of BigGAN, `[B, H, W, C]` -> `[B, H', W', features]`.

    `resample` doubles ("up") or halves ("down") the sides of what it is given.
    """

    features: int
    act: Callable
    rescale: bool
    resample: Callable | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """`emb` is the activated time embedding, `[B, E]` float32, which all blocks share."""
        h = self.act(group_norm(x, "GroupNorm_0", self.dtype))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = blocks.conv(h, self.features, name="Conv_0", dtype=self.dtype)
        emb = blocks.dense(emb, self.features, name="Dense_0")
        h = h + emb[:, None, None, :].astype(self.dtype)
        h = self.act(group_norm(h, "GroupNorm_1", self.dtype))
        h = blocks.conv(h, self.features, name="Conv_1", zero=True, dtype=self.dtype)
        # As published: a block that resamples has this layer even where the widths are equal.
        if self.resample is not None or x.shape[-1] != self.features:
            x = blocks.conv(x, self.features, kernel=1, name="Conv_2", dtype=self.dtype)
        return _sum(x, h, self.rescale)


class AttentionBlock(nn.Module):
    """Residual single-head self-attention over all positions."""

    rescale: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same shape."""
        b, h, w, c = x.shape
        y = group_norm(x, "GroupNorm_0", self.dtype).reshape(b, h * w, 1, c)
        q, k, v = (NIN(c, dtype=self.dtype, name=f"NIN_{n}")(y) for n in range(3))
        y = blocks.attend(q, k, v).reshape(b, h, w, c)
        return _sum(x, NIN(c, zero=True, dtype=self.dtype, name="NIN_3")(y), self.rescale)


class ImageToLevel(nn.Module):
    """Brings the image at a level's size to its features, as `input_skip` does."""

    combine: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, h: jax.Array) -> jax.Array:
        """`[B, H, W, C]` and `[B, H, W, D]` -> `[B, H, W, D]` ("cat": 2D)."""
        y = blocks.conv(image, h.shape[-1], kernel=1, name="Conv_0", dtype=self.dtype)
        return y + h if self.combine == "sum" else jnp.concatenate([y, h], axis=-1)


class Shrink(nn.Module):
    """A convolution that halves the sides, after a FIR filter if `taps` are given."""

    features: int
    taps: Sequence[float] | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, H/2, W/2, features]`."""
        if self.taps is None:
            name, padding = "Conv_0", ((0, 1), (0, 1))
        else:
            name, padding = "Conv2d_0", ((0, 0), (0, 0))
            # The filter and the convolution of 3x3 share their border.
            border = len(self.taps)
            x = fir.filtered(x, self.taps, ((border + 1) // 2, border // 2))
        options = {"stride": 2, "padding": padding, "dtype": self.dtype}
        return blocks.conv(x, self.features, name=name, **options)


def _sum(x, h, rescale: bool):
    return (x + h) / math.sqrt(2) if rescale else x + h


class NCSNpp(nn.Module):
    """The network of a VP, sub-VP or VE process.

    Attributes:
      channels: width of the first level; a level has mult * channels.
      attention_factors: the downsampling factors of the levels with attention, image size divided
        by resolution for each published `attn_resolutions`. The middle always has attention.
      embedding: "positional" (t is 999 times the continuous time) or "fourier" (t is σ).
      fir, fir_kernel: resampling with a FIR filter instead of means and repetition.
      progressive, progressive_input, progressive_combine: how the image enters and leaves levels.
      skip_rescale: residual sums are divided by √2.
      scale_by_sigma: the output is divided by σ, and so is the score of a VE process. It needs the
        Fourier embedding.
      centered: the images are in [-1, 1]; otherwise in [0, 1], and shifted inside.
    """

    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_factors: Sequence[int] = (2,)
    embedding: str = "positional"
    fir: bool = False
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    skip_rescale: bool = True
    scale_by_sigma: bool = False
    centered: bool = True
    nonlinearity: str = "swish"
    out_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | float, y: jax.Array | None = None) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, H, W, C]`, the image plus noise.
          t: scalar or `[B]`, float: 999 times the time, or σ > 0 ("fourier").
          y: None; the network has no classes.

        Returns:
          `[B, H, W, out_channels]` float32.

        Raises:
          ValueError: shapes, widths or fields that do not fit, or `y` passed.
        """
        self._check(x, y)
        numbers = itertools.count()
        name = lambda: f"all_modules.{next(numbers)}"  # noqa: E731
        act = ACTIVATIONS[self.nonlinearity]
        t = blocks.batch_of_indices(t, x.shape[0])
        emb = act(self._embed(t, act, name))
        if not self.centered:
            x = 2 * x - 1
        h, skips = self._encode(x, emb, act, name)
        h = self._decode(h, skips, emb, act, name)
        return h / t[:, None, None, None] if self.scale_by_sigma else h

    def _check(self, x, y) -> None:
        for field, choices in CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise ValueError(f"{field} is '{value}': choose from {', '.join(choices)}.")
        if self.scale_by_sigma and self.embedding != "fourier":
            raise ValueError("scale_by_sigma needs embedding='fourier', where t is sigma.")
        if y is not None:
            raise ValueError("class labels y were passed to an NCSN++, which has no classes.")
        blocks.check_image(x, len(self.channel_mult))

    def _embed(self, t, act, name) -> jax.Array:
        if self.embedding == "fourier":
            emb = Fourier(self.channels, name=name())(t)
        else:
            emb = blocks.ddpm_time_embedding(t, self.channels)
        emb = blocks.dense(emb, 4 * self.channels, name=name())
        return blocks.dense(act(emb), 4 * self.channels, name=name())

    def _res(self, h, emb, features, act, name, way=None):
        resample = {"down": self._halved, "up": self._doubled, None: None}[way]
        block = ResBlock(features, act, self.skip_rescale, resample, self.dtype, name=name)
        return block(h, emb)

    def _halved(self, x):
        return fir.downsample(x, self.fir_kernel) if self.fir else blocks.downsample_mean(x)

    def _doubled(self, x):
        if not self.fir:
            return blocks.upsample_nearest(x)
        # The published padding of a filter of odd length is that of a longer one.
        taps = tuple(self.fir_kernel)
        return fir.upsample(x, taps if len(taps) % 2 == 0 else (0, *taps))

    def _attention(self, h, name):
        return AttentionBlock(self.skip_rescale, self.dtype, name=name)(h)

    def _out(self, h, act, name) -> jax.Array:
        """Features of a level to an image."""
        h = act(group_norm(h.astype(jnp.float32), name(), jnp.float32))
        return blocks.conv(h, self.out_channels, name=name(), zero=True)

    def _encode(self, x, emb, act, name) -> tuple[jax.Array, list[jax.Array]]:
        """Output of the middle, and the activations for the decoder's skips."""
        image = x
        skips = [blocks.conv(x, self.channels, name=name(), dtype=self.dtype)]
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                h = self._res(skips[-1], emb, mult * self.channels, act, name())
                if 2**level in self.attention_factors:
                    h = self._attention(h, name())
                skips.append(h)
            if level == len(self.channel_mult) - 1:
                break
            h = self._res(skips[-1], emb, skips[-1].shape[-1], act, name(), "down")
            if self.progressive_input == "input_skip":
                image = self._halved(image)
                h = ImageToLevel(self.progressive_combine, self.dtype, name=name())(image, h)
            elif self.progressive_input == "residual":
                taps = self.fir_kernel if self.fir else None
                image = Shrink(h.shape[-1], taps, self.dtype, name=name())(image)
                h = image = _sum(image, h, self.skip_rescale)
            skips.append(h)
        h = self._res(skips[-1], emb, skips[-1].shape[-1], act, name())
        h = self._attention(h, name())
        return self._res(h, emb, h.shape[-1], act, name()), skips

    def _decode(self, h, skips, emb, act, name) -> jax.Array:
        image = None
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = blocks.joined(h, skips.pop())
                h = self._res(h, emb, mult * self.channels, act, name())
            if 2**level in self.attention_factors:
                h = self._attention(h, name())
            if self.progressive == "output_skip":
                out = self._out(h, act, name)
                image = out if image is None else self._doubled(image) + out
            if level > 0:
                h = self._res(h, emb, h.shape[-1], act, name(), "up")
        return self._out(h, act, name) if image is None else image
