"""The U-Net of diffusers' pixel pipelines (UNet2DModel).

It covers the U-Nets of DDPM and ADM and, with the Skip blocks and Fourier features, NCSN++. The
fields are those of its `config.json`, with the same names, and modules have the names of the
published ones. `dtype` is the compute dtype of convolutions and matrix products; parameters are
float32.
Source: github.com/huggingface/diffusers, models/unets/unet_2d.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks import blocks, fir
from cdsde.networks.unet2d_layers import (
    ACTIVATIONS,
    TAPS,
    Attention,
    FourierFeatures,
    GroupNorm,
    ResnetBlock,
    time_features,
)

SKIP_GROUPS = 32  # of the attention in Skip blocks


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
                h = blocks.joined(h, skips.pop())
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
