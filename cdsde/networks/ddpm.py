"""The U-Net of DDPM (Ho et al. 2020) in the layout of the published PyTorch code.

It maps images `[B, H, W, 3]` and the raw index `t` in 0..999 to the predicted noise, float32;
`dtype` is the compute dtype of convolutions and matrix products, parameters are always float32.
H and W must be divisible by 2**(len(channel_mult) - 1).
Source: github.com/ermongroup/ddim and SDEdit, as used by ML-GSAI/EGSDE (male2female).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks import blocks


class ResBlock(nn.Module):
    """Residual block, `[B, H, W, C]` -> `[B, H, W, features]`."""

    features: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """`emb` is SiLU of the time embedding, `[B, E]` float32, which all blocks share."""
        h = blocks.GroupNorm(blocks.DDPM_EPS, silu=True, dtype=self.dtype, name="norm1")(x)
        h = blocks.conv(h, self.features, name="conv1", dtype=self.dtype)
        emb = blocks.dense(emb, self.features, name="temb_proj")
        h = h + emb[:, None, None, :].astype(self.dtype)
        h = blocks.GroupNorm(blocks.DDPM_EPS, silu=True, dtype=self.dtype, name="norm2")(h)
        if self.dropout > 0:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = blocks.conv(h, self.features, name="conv2", zero=True, dtype=self.dtype)
        if x.shape[-1] != self.features:
            x = blocks.conv(x, self.features, kernel=1, name="nin_shortcut", dtype=self.dtype)
        return x + h


class AttentionBlock(nn.Module):
    """Residual single-head self-attention over all positions."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same shape; q and k are each multiplied by C^(-1/4)."""
        b, h, w, c = x.shape
        y = blocks.GroupNorm(blocks.DDPM_EPS, dtype=self.dtype, name="norm")(x)
        y = y.reshape(b, h * w, 1, c)
        q, k, v = (blocks.dense(y, c, name=name, dtype=self.dtype) for name in "qkv")
        y = blocks.attend(q, k, v).reshape(b, h, w, c)
        return x + blocks.dense(y, c, name="proj_out", zero=True, dtype=self.dtype)


class Downsample(nn.Module):
    """Halves the sides; the convolution pads only below and on the right, as published."""

    with_conv: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, H/2, W/2, C]`."""
        if not self.with_conv:
            return blocks.downsample_mean(x)
        padding = ((0, 1), (0, 1))
        return blocks.conv(x, x.shape[-1], stride=2, padding=padding, name="conv", dtype=self.dtype)


class Upsample(nn.Module):
    """Doubles the sides by repetition, followed by an optional convolution."""

    with_conv: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, 2H, 2W, C]`."""
        x = blocks.upsample_nearest(x)
        return blocks.conv(x, x.shape[-1], name="conv", dtype=self.dtype) if self.with_conv else x


class DDPMUNet(nn.Module):
    """Predicts the noise of an image.

    Attention follows every residual block of a level whose resolution, image_size / 2**level, is in
    `attention_resolutions`, and stands in the middle. `image_size` serves only this rule: images of
    any size that the downsampling divides may be passed.
    """

    channels: int = 128
    channel_mult: Sequence[float] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    image_size: int = 256
    resamp_with_conv: bool = True
    out_channels: int = 3
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | float, train: bool = False) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, H, W, 3]` in [-1, 1] plus noise.
          t: scalar or `[B]`, raw index 0..999, int or float.
          train: apply dropout, with the key of the stream "dropout".

        Returns:
          `[B, H, W, out_channels]` float32.

        Raises:
          ValueError: shapes or widths that do not fit.
        """
        blocks.check_image(x, len(self.channel_mult))
        t = blocks.batch_of_indices(t, x.shape[0])
        emb = blocks.ddpm_time_embedding(t, self.channels)
        emb = nn.silu(blocks.dense(emb, 4 * self.channels, name="temb_dense_0"))
        emb = nn.silu(blocks.dense(emb, 4 * self.channels, name="temb_dense_1"))
        levels = list(enumerate(self.channel_mult))

        h = blocks.conv(x, self.channels, name="conv_in", dtype=self.dtype)
        skips = [h]
        for level, mult in levels:
            for i in range(self.num_res_blocks):
                h = self._res_and_attention(h, emb, mult, train, "down", level, i)
                skips.append(h)
            if level < len(levels) - 1:
                down = Downsample(
                    self.resamp_with_conv, self.dtype, name=f"down_{level}_downsample"
                )
                h = down(h)
                skips.append(h)

        h = self._res(h, emb, h.shape[-1], train, "mid_block_1")
        h = self._attention(h, "mid_attn_1")
        h = self._res(h, emb, h.shape[-1], train, "mid_block_2")

        for level, mult in reversed(levels):
            for i in range(self.num_res_blocks + 1):
                h = blocks.joined(h, skips.pop())
                h = self._res_and_attention(h, emb, mult, train, "up", level, i)
            if level > 0:
                h = Upsample(self.resamp_with_conv, self.dtype, name=f"up_{level}_upsample")(h)

        h = blocks.GroupNorm(blocks.DDPM_EPS, silu=True, name="norm_out")(h)
        return blocks.conv(h, self.out_channels, name="conv_out", zero=True)

    def _res_and_attention(self, h, emb, mult, train, way, level, i):
        h = self._res(h, emb, int(mult * self.channels), train, f"{way}_{level}_block_{i}")
        if self.image_size // 2**level in self.attention_resolutions:
            h = self._attention(h, f"{way}_{level}_attn_{i}")
        return h

    def _res(self, h, emb, features, train, name):
        cls = nn.remat(ResBlock) if self.remat else ResBlock
        return cls(features, self.dropout if train else 0.0, self.dtype, name=name)(h, emb)

    def _attention(self, h, name):
        cls = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        return cls(self.dtype, name=name)(h)
