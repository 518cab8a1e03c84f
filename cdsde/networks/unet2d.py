"""The U-Net of diffusers' pixel pipelines (UNet2DModel).

It covers the U-Nets of DDPM and ADM and, with the Skip blocks and Fourier features, NCSN++. The
fields are those of its `config.json`, with the same names, and modules have the names of the
published ones. `dtype` is the compute dtype of convolutions and matrix products; parameters are
float32.
Source: github.com/huggingface/diffusers, models/unets/unet_2d.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks import blocks, fir, normalisation

TAPS = (1, 3, 3, 1)  # the filter of the Skip blocks
SKIP_GROUPS = 32  # of the attention in Skip blocks
ACTIVATIONS: dict[str, Callable] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}


class Block(NamedTuple):
    """What the name of a block says.

    Attributes:
      attention: whether it has attention.
      skip: whether it passes the image on at its own resolution, as NCSN++ does.
      resnet: whether a residual block resamples, whatever the network's `downsample_type` or
        `upsample_type`.
    """

    attention: bool = False
    skip: bool = False
    resnet: bool = False


_KINDS = {
    "": Block(),
    "Attn": Block(attention=True),
    "Skip": Block(skip=True),
    "AttnSkip": Block(attention=True, skip=True),
}
DOWN_BLOCKS = {f"{name}DownBlock2D": kind for name, kind in _KINDS.items()}
DOWN_BLOCKS["ResnetDownsampleBlock2D"] = Block(resnet=True)
UP_BLOCKS = {f"{name}UpBlock2D": kind for name, kind in _KINDS.items()}
UP_BLOCKS["ResnetUpsampleBlock2D"] = Block(resnet=True)


def time_features(t: jax.Array, width: int, shift: float, cosines_first: bool) -> jax.Array:
    """Sines and cosines of an index: `[B]` -> `[B, width]` float32.

    Args:
      t: `[B]` float32.
      width: number of channels, even.
      shift: subtracted from width / 2, the number of frequencies, in their exponent's divisor.
      cosines_first: whether cosines come before sines.
    """
    half = width // 2
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32)
    exponents = exponents / np.float32(half - shift)
    # Rounded once: an index of 999 magnifies the last bit of a frequency a thousand times.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t[:, None] * frequencies[None, :]
    both = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(both[::-1] if cosines_first else both, axis=-1)


class FourierFeatures(nn.Module):
    """Sines and cosines of ln σ times frequencies that are fixed at random."""

    width: int

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        """`[B]` -> `[B, 2 width]`."""
        weight = self.param("weight", nn.initializers.normal(16.0), (self.width,), jnp.float32)
        angles = jnp.log(sigma)[:, None] * weight[None, :] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class GroupNorm(nn.Module):
    """Group normalisation, optionally modulated, and the activation after it."""

    groups: int
    eps: float
    act: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, modulation: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """`[B, H, W, C]` -> the same; `modulation` is `(scale, shift)`, each `[B, C]` float32."""
        shape, channels = x.shape, x.shape[-1]
        if channels % max(self.groups, 1) or self.groups < 1:
            raise ValueError(
                f"{'/'.join(self.path)} normalises {channels} channels in {self.groups} groups; "
                "the groups (norm_num_groups) must divide every width"
            )
        gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None, :]
        offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None, :]
        if modulation is not None:
            scale, shift = modulation
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        silu = self.act in ("silu", "swish")
        x = x.reshape(shape[0], -1, channels)
        x = normalisation.normalise(x, gain, offset, self.groups, self.eps, silu)
        if self.act is not None and not silu:
            x = ACTIVATIONS[self.act](x)
        return x.reshape(shape).astype(self.dtype)


def _resample(x: jax.Array, direction: str, filtered: bool) -> jax.Array:
    if filtered:
        return {"up": fir.upsample, "down": fir.downsample}[direction](x, TAPS)
    return {"up": blocks.upsample_nearest, "down": blocks.downsample_mean}[direction](x)


class ResnetBlock(nn.Module):
    """Residual block, `[B, H, W, C]` -> `[B, H', W', features]`.

    Attributes:
      features: channels of the result.
      groups: groups of the two normalisations.
      eps, act: their epsilon, and the activation after them.
      scale_shift: whether the time scales and shifts the second one, or is added before it.
      resample: None, "up" or "down".
      filtered: whether a FIR filter resamples; the shortcut then always has a convolution.
      divisor: divides the result.
    """

    features: int
    groups: tuple[int, int]
    eps: float
    act: str = "silu"
    scale_shift: bool = False
    resample: str | None = None
    filtered: bool = False
    divisor: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """`emb` is the activated time embedding, `[B, E]` float32, which all blocks share."""
        first, second = (
            GroupNorm(groups, self.eps, self.act, self.dtype, name=name)
            for groups, name in zip(self.groups, ("norm1", "norm2"), strict=True)
        )
        h = first(x)
        if self.resample is not None:
            h, x = (_resample(a, self.resample, self.filtered) for a in (h, x))
        h = blocks.conv(h, self.features, name="conv1", dtype=self.dtype)
        shift = blocks.dense(emb, (1 + self.scale_shift) * self.features, name="time_emb_proj")
        if self.scale_shift:
            h = second(h, tuple(jnp.split(shift, 2, axis=-1)))
        else:
            h = second(h + shift[:, None, None, :].astype(self.dtype))
        h = blocks.conv(h, self.features, name="conv2", dtype=self.dtype)
        if self.filtered or x.shape[-1] != self.features:
            x = blocks.conv(x, self.features, kernel=1, name="conv_shortcut", dtype=self.dtype)
        return (x + h) / self.divisor


class Attention(nn.Module):
    """Residual self-attention over all positions; `groups` is None for no normalisation."""

    head_dim: int
    groups: int | None
    eps: float
    divisor: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same."""
        b, h, w, c = x.shape
        heads = c // self.head_dim
        if not heads:
            raise ValueError(
                f"{'/'.join(self.path)} has {c} channels, fewer than attention_head_dim, "
                f"{self.head_dim}"
            )
        y = x.astype(self.dtype)
        if self.groups is not None:
            y = GroupNorm(self.groups, self.eps, dtype=self.dtype, name="group_norm")(x)
        y = y.reshape(b, h * w, c)
        # As published, channels beyond a whole number of heads have no queries.
        q, k, v = (
            blocks.dense(y, heads * self.head_dim, name=f"to_{n}", dtype=self.dtype).reshape(
                b, h * w, heads, self.head_dim
            )
            for n in "qkv"
        )
        y = blocks.attend(q, k, v).reshape(b, h * w, heads * self.head_dim)
        y = blocks.dense(y, c, name="to_out.0", dtype=self.dtype)
        return (x + y.reshape(b, h, w, c)) / self.divisor


class UNet2D(nn.Module):
    """The network. Each field but `dtype` and `remat` is one of `config.json`.

    Attributes:
      in_channels, out_channels: channels of image and result.
      center_input_sample: whether images are in [0, 1] and are moved to [-1, 1] inside.
      time_embedding_type: "positional": t is an index; "fourier": t is σ, and the result, which is
        the score, is divided by it.
      time_embedding_dim: width of the time embedding; None: four times the first width.
      freq_shift, flip_sin_to_cos: of the positional features, see `time_features`.
      down_block_types, up_block_types: names of the blocks, see `DOWN_BLOCKS` and `UP_BLOCKS`.
      mid_block_type: "UNetMidBlock2D", or None for no block in the middle.
      block_out_channels: width of each level.
      layers_per_block: residual blocks per level of the encoder (the decoder has one more).
      mid_block_scale_factor: divides what the blocks in the middle add.
      downsample_padding: 1: on all sides; 0: one row below and one column on the right.
      downsample_type, upsample_type: how Attn blocks resample, "conv" or "resnet".
      act_fn: activation of the residual blocks, a key of `ACTIVATIONS`.
      attention_head_dim: width of a head; None: one head as wide as the level.
      norm_num_groups: groups of the normalisation; None: a quarter of the width, at most 32.
      attn_norm_num_groups: groups in the attention in the middle; None: `norm_num_groups`, but no
        normalisation there with "scale_shift".
      norm_eps: epsilon of the normalisation.
      resnet_time_scale_shift: "default" adds the time to features, "scale_shift" modulates them.
      add_attention: whether the middle has attention.
      class_embed_type: None: a table if `num_class_embeds` is set; "timestep": labels are embedded
        as times are; "identity": labels are vectors.
      num_class_embeds: number of classes.
      dtype: compute dtype.
      remat: whether the backward pass recomputes residual blocks and attention.
    """

    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: Sequence[str] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: Sequence[str] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
    block_out_channels: Sequence[int] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | float, y: jax.Array | None = None) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, H, W, in_channels]`, the noisy image.
          t: scalar or `[B]`, the index, or σ with Fourier features.
          y: class labels, exactly if the network takes them: `[B]` integers, or `[B, E]` vectors
            where `class_embed_type` is "identity".

        Returns:
          `[B, H, W, out_channels]` float32.

        Raises:
          ValueError: shapes or widths that do not fit, `y` missing or superfluous.
        """
        blocks.check_image(x, len(self.block_out_channels))
        if x.shape[-1] != self.in_channels:
            raise ValueError(
                f"this network takes images of {self.in_channels} channels, and got {x.shape[-1]}"
            )
        if self.center_input_sample:
            x = 2 * x - 1
        t = blocks.batch_of_indices(t, x.shape[0])
        emb = ACTIVATIONS[self.act_fn](self._embed(t, y))
        h = blocks.conv(x, self.block_out_channels[0], name="conv_in", dtype=self.dtype)
        h, skips = self._down(h, x, emb)
        if self.mid_block_type is not None:
            h = self._middle(h, emb)
        h, image = self._up(h, skips, emb)
        norm = self._head_groups(self.block_out_channels[0])
        # As published, this activation is SiLU whatever act_fn says.
        h = GroupNorm(norm, self.norm_eps, "silu", name="conv_norm_out")(h)
        h = blocks.conv(h, self.out_channels, name="conv_out")
        if image is not None:
            h = h + image.astype(jnp.float32)
        return h / t[:, None, None, None] if self.time_embedding_type == "fourier" else h

    def _embed(self, t: jax.Array, y: jax.Array | None) -> jax.Array:
        """Embedding of time and class, `[B, E]` float32, not activated."""
        first = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * first
        fourier = None
        if self.time_embedding_type == "fourier":
            fourier = FourierFeatures(first, name="time_proj")

        def features(t):
            if fourier is not None:
                return fourier(t)
            return time_features(t, first, self.freq_shift, self.flip_sin_to_cos)

        def embed(t, name):
            h = nn.silu(blocks.dense(features(t), width, name=f"{name}.linear_1"))
            return blocks.dense(h, width, name=f"{name}.linear_2")

        emb = embed(t, "time_embedding")
        kind = self.class_embed_type
        if kind is None and self.num_class_embeds is not None:
            kind = "table"
        if (y is None) != (kind is None):
            raise ValueError(
                "this network takes no class labels; leave y out"
                if kind is None
                else "this network takes class labels; pass one for each image as y"
            )
        if y is None:
            return emb
        if kind == "identity":
            return emb + y
        if kind == "timestep":
            return emb + embed(y.astype(jnp.float32), "class_embedding")
        return emb + nn.Embed(self.num_class_embeds, width, name="class_embedding")(y)

    def _down(self, h, image, emb) -> tuple[jax.Array, list[jax.Array]]:
        """Output of the encoder, and the activations that the decoder concatenates."""
        skips = [h]
        for level, (name, width) in enumerate(
            zip(self.down_block_types, self.block_out_channels, strict=True)
        ):
            block, at = DOWN_BLOCKS[name], f"down_blocks.{level}"
            for n in range(self.layers_per_block):
                groups = self._groups(block, h.shape[-1]), self._groups(block, width)
                h = self._resnet(width, groups, block, f"{at}.resnets.{n}")(h, emb)
                if block.attention:
                    h = self._attention(width, block, f"{at}.attentions.{n}")(h)
                skips.append(h)
            if level < len(self.down_block_types) - 1:
                h, image = self._downsample(h, image, emb, block, at)
                skips.append(h)
        return h, skips

    def _downsample(self, h, image, emb, block: Block, at: str):
        width = h.shape[-1]
        groups = (self._groups(block, width),) * 2
        if block.skip:
            h = self._resnet(width, groups, block, f"{at}.resnet_down", "down")(h, emb)
            image = fir.downsample(image, TAPS)
            return h + self._conv(image, width, f"{at}.skip_conv", kernel=1), image
        if block.resnet or (block.attention and self.downsample_type == "resnet"):
            name = f"{at}.downsamplers.0"
            return self._resnet(width, groups, block, name, "down")(h, emb), image
        border = (1, 1) if self.downsample_padding else (0, 1)
        name = f"{at}.downsamplers.0.conv"
        return self._conv(h, width, name, stride=2, padding=(border, border)), image

    def _middle(self, h, emb) -> jax.Array:
        width, norm = h.shape[-1], self._head_groups(h.shape[-1])
        divisor = self.mid_block_scale_factor

        def resnet(n):
            name = f"mid_block.resnets.{n}"
            return self._resnet(width, (norm, norm), Block(), name, divisor=divisor)

        h = resnet(0)(h, emb)
        if self.add_attention:
            groups = self.attn_norm_num_groups
            if groups is None and self.resnet_time_scale_shift == "default":
                groups = norm
            h = self._attention(width, Block(), "mid_block.attentions.0", groups, divisor)(h)
        return resnet(1)(h, emb)

    def _up(self, h, skips, emb) -> tuple[jax.Array, jax.Array | None]:
        """Output of the decoder, and the image of the Skip blocks."""
        image = None
        widths = list(reversed(self.block_out_channels))
        for level, (name, width) in enumerate(zip(self.up_block_types, widths, strict=True)):
            block, at = UP_BLOCKS[name], f"up_blocks.{level}"
            for n in range(self.layers_per_block + 1):
                below, beside = h.shape[-1], skips[-1].shape[-1]
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                groups = self._groups(block, below + beside), self._groups(block, width)
                if block.skip and block.attention:  # sic, as published
                    groups = min(below + beside // 4, SKIP_GROUPS), groups[1]
                h = self._resnet(width, groups, block, f"{at}.resnets.{n}")(h, emb)
                if block.attention and not block.skip:
                    h = self._attention(width, block, f"{at}.attentions.{n}")(h)
            if block.attention and block.skip:
                h = self._attention(width, block, f"{at}.attentions.0")(h)
            if block.skip and image is not None:
                image = fir.upsample(image, TAPS)
            if level < len(widths) - 1:
                h, image = self._upsample(h, image, emb, block, at)
        return h, image

    def _upsample(self, h, image, emb, block: Block, at: str):
        width = h.shape[-1]
        groups = (self._groups(block, width),) * 2
        if block.skip:
            norm = GroupNorm(groups[0], self.norm_eps, "silu", self.dtype, name=f"{at}.skip_norm")
            added = self._conv(norm(h), self.out_channels, f"{at}.skip_conv")
            image = added if image is None else image + added
            return self._resnet(width, groups, block, f"{at}.resnet_up", "up")(h, emb), image
        if block.resnet or (block.attention and self.upsample_type == "resnet"):
            return self._resnet(width, groups, block, f"{at}.upsamplers.0", "up")(h, emb), image
        return self._conv(blocks.upsample_nearest(h), width, f"{at}.upsamplers.0.conv"), image

    def _conv(self, x, features: int, name: str, **how) -> jax.Array:
        return blocks.conv(x, features, name=name, dtype=self.dtype, **how)

    def _groups(self, block: Block, width: int) -> int:
        """Groups of a normalisation of `width` channels."""
        return min(width // 4, 32) if block.skip else self._head_groups(width)

    def _head_groups(self, width: int) -> int:
        return min(width // 4, 32) if self.norm_num_groups is None else self.norm_num_groups

    def _resnet(
        self, width, groups, block: Block, name: str, resample=None, divisor: float = 1
    ) -> ResnetBlock:
        cls = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        return cls(
            width,
            groups,
            self.norm_eps,
            self.act_fn,
            self.resnet_time_scale_shift == "scale_shift",
            resample,
            filtered=block.skip and resample is not None,
            divisor=math.sqrt(2) if block.skip else divisor,
            dtype=self.dtype,
            name=name,
        )

    def _attention(
        self, width: int, block: Block, name: str, groups: int | None = -1, divisor: float = 1
    ) -> Attention:
        if groups == -1:
            groups = SKIP_GROUPS if block.skip else self._head_groups(width)
        cls = nn.remat(Attention) if self.remat else Attention
        return cls(
            self.attention_head_dim or width,
            groups,
            self.norm_eps,
            math.sqrt(2) if block.skip else divisor,
            self.dtype,
            name=name,
        )
