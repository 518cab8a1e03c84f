"""The autoencoder of SD-1.x (diffusers' AutoencoderKL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdsde.networks.stable_diffusion import layers
from cdsde.networks.stable_diffusion.unet import ResnetBlock

EPS = 1e-6


class Moments(NamedTuple):
    """Mean and log variance of Gaussian latents, `[B, h, w, 4]` each, unscaled."""

    mean: jax.Array
    log_variance: jax.Array

    @property
    def std(self) -> jax.Array:
        """Standard deviation, `[B, h, w, 4]`."""
        return jnp.exp(0.5 * self.log_variance)


class _Attention(nn.Module):
    """Residual single-head self-attention over all positions."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        h = layers.GroupNorm(self.groups, EPS, self.dtype, name="group_norm")(x)
        h = h.reshape(b, height * width, c)
        q, k, v = (
            layers.split_heads(layers.dense(c, f"to_{n}", dtype=self.dtype)(h), 1) for n in "qkv"
        )
        h = layers.dense(c, "to_out.0", dtype=self.dtype)(layers.attend(q, k, v))
        return x + h.reshape(b, height, width, c)


def _resnet(net, width: int, name: str) -> ResnetBlock:
    return ResnetBlock(width, net.groups, EPS, net.dtype, name=name)


def _middle(net, x: jax.Array) -> jax.Array:
    """Two residual blocks with attention between them, named as in `mid_block`."""
    width = net.widths[-1]
    x = _resnet(net, width, "mid_block.resnets.0")(x)
    x = _Attention(net.groups, net.dtype, name="mid_block.attentions.0")(x)
    return _resnet(net, width, "mid_block.resnets.1")(x)


class Encoder(nn.Module):
    """Images → moments, before the convolution `quant_conv`."""

    widths: Sequence[int]
    blocks: int
    groups: int
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, 3]` in [-1, 1] → `[B, h, w, out_channels]`."""
        x = layers.conv(self.widths[0], 3, "conv_in", dtype=self.dtype)(x)
        for level, width in enumerate(self.widths):
            name = f"down_blocks.{level}"
            for n in range(self.blocks):
                x = _resnet(self, width, f"{name}.resnets.{n}")(x)
            if level < len(self.widths) - 1:
                # As published: padding below and on the right only.
                down, pad = f"{name}.downsamplers.0.conv", ((0, 1), (0, 1))
                x = layers.conv(width, 3, down, stride=2, padding=pad, dtype=self.dtype)(x)
        x = layers.GroupNorm(self.groups, EPS, name="conv_norm_out")(_middle(self, x))
        return layers.conv(self.out_channels, 3, "conv_out")(nn.silu(x))


class Decoder(nn.Module):
    """Latents → images, after the convolution `post_quant_conv`."""

    widths: Sequence[int]
    blocks: int
    groups: int
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """`[B, h, w, C]` → `[B, H, W, out_channels]`, float32."""
        x = layers.conv(self.widths[-1], 3, "conv_in", dtype=self.dtype)(z)
        x = _middle(self, x)
        for up, width in enumerate(reversed(self.widths)):
            name = f"up_blocks.{up}"
            for n in range(self.blocks + 1):
                x = _resnet(self, width, f"{name}.resnets.{n}")(x)
            if up < len(self.widths) - 1:
                conv = layers.conv(width, 3, f"{name}.upsamplers.0.conv", dtype=self.dtype)
                x = conv(layers.upsample(x))
        x = layers.GroupNorm(self.groups, EPS, name="conv_norm_out")(x)
        return layers.conv(self.out_channels, 3, "conv_out")(nn.silu(x))


class AutoencoderKL(nn.Module):
    """Encoder and decoder between images and latents of 1 / 2^(levels - 1) of their side.

    Attributes:
      widths: channels of each level.
      blocks: residual blocks per level of the encoder (the decoder has one more).
      groups: groups of the normalisation.
      latent_channels, out_channels: channels of the latent and of the image.
      dtype: compute dtype of products and convolutions.
    """

    widths: Sequence[int] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    latent_channels: int = 4
    out_channels: int = 3
    dtype: Any = jnp.float32

    def setup(self):
        """Creates the four parts under their published names."""
        fields = self.widths, self.blocks, self.groups
        self.encoder = Encoder(*fields, 2 * self.latent_channels, self.dtype)
        self.decoder = Decoder(*fields, self.out_channels, self.dtype)
        self.quant_conv = layers.conv(2 * self.latent_channels, 1, None)
        self.post_quant_conv = layers.conv(self.latent_channels, 1, None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstruction from the mean latents, `[B, H, W, 3]` in [-1, 1] → the same shape."""
        return self.decode(self.encode(x).mean)

    def encode(self, x: jax.Array) -> Moments:
        """Images `[B, H, W, 3]` in [-1, 1] → moments of their latents.

        Raises:
          ValueError: H or W is not a multiple of 2^(levels - 1).
        """
        factor = 2 ** (len(self.widths) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} cannot be encoded: sides must be multiples "
                f"of {factor}"
            )
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        return Moments(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, z: jax.Array) -> jax.Array:
        """Unscaled latents `[B, h, w, 4]` → images `[B, H, W, 3]`, about [-1, 1], float32."""
        return self.decoder(self.post_quant_conv(z))
