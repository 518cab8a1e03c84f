"""The U-Net of guided-diffusion (ADM; Dhariwal and Nichol 2021) and its encoder half.

Both map images `[B, H, W, 3]` and the raw index `t` in 0..999 to float32; `dtype` is the compute
dtype of convolutions and matrix products. Parameters are always float32. A level has
int(mult * channels) channels; H and W must be divisible by 2**(len(channel_mult) - 1).
`attention_factors` are the downsampling factors of the levels with attention: image_size //
resolution for each resolution that the published configurations list.
Source: github.com/openai/guided-diffusion, and ML-GSAI/EGSDE for the extractor.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks import blocks


class ResBlock(nn.Module):
    """Residual block, `[B, H, W, C]` -> `[B, H', W', features]`.

    `resample` is None, "up" (doubles the sides) or "down" (halves them).
    """

    features: int
    resample: str | None = None
    use_scale_shift_norm: bool = True
    dropout: float = 0.0
    group_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """`emb` is SiLU of the time embedding, `[B, E]` float32, which all blocks share."""
        h = self._norm("in_layers_0")(x)
        # As published, resampling comes between SiLU and the convolution.
        if self.resample is not None:
            resample = {"up": blocks.upsample_nearest, "down": blocks.downsample_mean}
            h, x = (resample[self.resample](a) for a in (h, x))
        h = blocks.conv(h, self.features, name="in_layers_2", dtype=self.dtype)
        if self.use_scale_shift_norm:
            emb = blocks.dense(emb, 2 * self.features, name="emb_layers_1")
            h = self._norm("out_layers_0")(h, jnp.split(emb, 2, axis=-1))
        else:
            emb = blocks.dense(emb, self.features, name="emb_layers_1")
            h = self._norm("out_layers_0")(h + emb[:, None, None, :].astype(self.dtype))
        if self.dropout > 0:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = blocks.conv(h, self.features, name="out_layers_3", zero=True, dtype=self.dtype)
        if x.shape[-1] != self.features:
            x = blocks.conv(x, self.features, kernel=1, name="skip_connection", dtype=self.dtype)
        return x + h

    def _norm(self, name: str) -> blocks.GroupNorm:
        return blocks.GroupNorm(
            blocks.ADM_EPS,
            silu=True,
            group_channels=self.group_channels,
            dtype=self.dtype,
            name=name,
        )


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions."""

    num_heads: int = 4
    num_head_channels: int = 64
    new_attention_order: bool = False
    group_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> the same shape.

        Raises:
          ValueError: the heads do not divide the channels.
        """
        b, h, w, c = x.shape
        heads = blocks.num_heads_for(c, self.num_heads, self.num_head_channels)
        norm = blocks.GroupNorm(
            blocks.ADM_EPS, group_channels=self.group_channels, dtype=self.dtype, name="norm"
        )
        y = norm(x)
        qkv = blocks.dense(y.reshape(b, h * w, c), 3 * c, name="qkv", dtype=self.dtype)
        y = blocks.attend(*blocks.split_qkv(qkv, heads, self.new_attention_order))
        y = y.reshape(b, h * w, c)
        y = blocks.dense(y, c, name="proj_out", zero=True, dtype=self.dtype)
        return x + y.reshape(b, h, w, c)


class AttentionPool(nn.Module):
    """The attention pooling of CLIP: the mean attends to itself and to all positions.

    It is always in float32, being small, and always uses the new order of q, k and v.
    """

    side: int
    num_head_channels: int
    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, side, side, C]` -> `[B, out_channels]`.

        Raises:
          ValueError: other sides, for which there are no positional embeddings.
        """
        b, h, w, c = x.shape
        if (h, w) != (self.side, self.side):
            raise ValueError(
                f"the attention pool was built for {self.side}x{self.side} features and got "
                f"{h}x{w}: pass images of the encoder's image_size, or head=False for the features."
            )
        heads = blocks.num_heads_for(c, -1, self.num_head_channels)
        x = x.reshape(b, h * w, c)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        init = nn.initializers.normal(c**-0.5)
        # Stored as published, channels first: (C, positions + 1).
        position = self.param("positional_embedding", init, (c, h * w + 1), jnp.float32)
        x = x + position.T[None]
        qkv = blocks.dense(x, 3 * c, name="qkv_proj")
        q, k, v = blocks.split_qkv(qkv, heads, new_order=True)
        # Only position 0 is returned, so only its query is needed.
        y = blocks.attend(q[:, :1], k, v).reshape(b, c)
        return blocks.dense(y, self.out_channels, name="c_proj")


class _ADM(nn.Module):
    """Fields and encoder half that `ADMUNet` and `ADMEncoder` share."""

    channels: int = 128
    channel_mult: Sequence[float] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 1
    attention_factors: Sequence[int] = (16,)
    num_heads: int = 4
    num_head_channels: int = 64
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    new_attention_order: bool = False
    out_channels: int = 6
    dropout: float = 0.0
    num_classes: int | None = None
    group_channels: int = 1
    dtype: Any = jnp.float32
    remat: bool = False

    def _embed(self, t: jax.Array | float, y: jax.Array | None, batch: int) -> jax.Array:
        """SiLU of the time (and class) embedding, `[batch, 4 * channels]` float32."""
        t = blocks.batch_of_indices(t, batch)
        emb = blocks.adm_time_embedding(t, self.channels)
        emb = nn.silu(blocks.dense(emb, 4 * self.channels, name="time_embed_0"))
        emb = blocks.dense(emb, 4 * self.channels, name="time_embed_2")
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                f"class labels y were {'not ' if y is None else ''}passed to a network with "
                f"num_classes={self.num_classes}: pass y exactly if num_classes is set."
            )
        if y is not None:
            label_emb = nn.Embed(
                self.num_classes,
                4 * self.channels,
                embedding_init=nn.initializers.normal(1.0),
                name="label_emb",
            )
            emb = emb + label_emb(y)
        return nn.silu(emb)

    def _res(self, h, emb, features, train, name, resample=None):
        cls = nn.remat(ResBlock) if self.remat else ResBlock
        return cls(
            features,
            resample=resample,
            use_scale_shift_norm=self.use_scale_shift_norm,
            dropout=self.dropout if train else 0.0,
            group_channels=self.group_channels,
            dtype=self.dtype,
            name=name,
        )(h, emb)

    def _attention(self, h, name, num_heads=None):
        cls = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        return cls(
            num_heads=self.num_heads if num_heads is None else num_heads,
            num_head_channels=self.num_head_channels,
            new_attention_order=self.new_attention_order,
            group_channels=self.group_channels,
            dtype=self.dtype,
            name=name,
        )(h)

    def _down(self, h, emb, train, name):
        if self.resblock_updown:
            return self._res(h, emb, h.shape[-1], train, f"{name}_0", resample="down")
        if self.conv_resample:
            return blocks.conv(h, h.shape[-1], stride=2, name=f"{name}_0_op", dtype=self.dtype)
        return blocks.downsample_mean(h)

    def _up(self, h, emb, train, name):
        if self.resblock_updown:
            return self._res(h, emb, h.shape[-1], train, name, resample="up")
        h = blocks.upsample_nearest(h)
        if self.conv_resample:
            h = blocks.conv(h, h.shape[-1], name=f"{name}_conv", dtype=self.dtype)
        return h

    def _out_norm(self, name: str) -> blocks.GroupNorm:
        """The normalisation before the output, in float32."""
        return blocks.GroupNorm(
            blocks.ADM_EPS, silu=True, group_channels=self.group_channels, name=name
        )

    def _encode(self, x, emb, train) -> tuple[jax.Array, list[jax.Array]]:
        """Output of stem, levels and middle block, and the activations for the decoder's skips."""
        blocks.check_image(x, len(self.channel_mult))
        width = int(self.channel_mult[0] * self.channels)
        h = blocks.conv(x, width, name="input_blocks_0_0", dtype=self.dtype)
        skips, index, factor = [h], 1, 1
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                h = self._res(h, emb, int(mult * self.channels), train, f"input_blocks_{index}_0")
                if factor in self.attention_factors:
                    h = self._attention(h, f"input_blocks_{index}_1")
                skips.append(h)
                index += 1
            if level < len(self.channel_mult) - 1:
                h = self._down(h, emb, train, f"input_blocks_{index}")
                skips.append(h)
                index += 1
                factor *= 2
        h = self._res(h, emb, h.shape[-1], train, "middle_block_0")
        h = self._attention(h, "middle_block_1")
        return self._res(h, emb, h.shape[-1], train, "middle_block_2"), skips


class ADMUNet(_ADM):
    """Predicts the noise (channels 0..2) and, with 6 output channels, the variance's share.

    `num_heads_upsample` is the number of heads in the decoder, -1 for `num_heads`; like that it
    counts only where `num_head_channels` is -1.
    """

    num_heads_upsample: int = -1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | float,
        y: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, H, W, 3]` in [-1, 1] plus noise.
          t: scalar or `[B]`, raw index 0..999, int or float.
          y: `[B]` integer class labels, exactly if `num_classes` is set.
          train: apply dropout, with the key of the stream "dropout".

        Returns:
          `[B, H, W, out_channels]` float32.

        Raises:
          ValueError: shapes or widths that do not fit, `y` missing or superfluous.
        """
        emb = self._embed(t, y, x.shape[0])
        h, skips = self._encode(x, emb, train)
        heads = None if self.num_heads_upsample == -1 else self.num_heads_upsample
        index, factor = 0, 2 ** (len(self.channel_mult) - 1)
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for i in range(self.num_res_blocks + 1):
                name, member = f"output_blocks_{index}", 1
                h = blocks.joined(h, skips.pop())
                h = self._res(h, emb, int(mult * self.channels), train, f"{name}_0")
                if factor in self.attention_factors:
                    h = self._attention(h, f"{name}_1", heads)
                    member = 2
                if level > 0 and i == self.num_res_blocks:
                    h = self._up(h, emb, train, f"{name}_{member}")
                    factor //= 2
                index += 1
        h = self._out_norm("out_0")(h)
        return blocks.conv(h, self.out_channels, name="out_2", zero=True)


class ADMEncoder(_ADM):
    """The U-Net's encoder half with a pooled head: classifier or contrastive encoder.

    `image_size` fixes the positional embedding of `pool="attention"`; `pool="adaptive"` (mean over
    positions) takes any size; `pool="none"` applies the head to each position. `out_channels` is
    the number of classes or the embedding width.
    """

    pool: str = "attention"
    image_size: int = 256
    out_channels: int = 2

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | float,
        y: jax.Array | None = None,
        train: bool = False,
        head: bool = True,
    ) -> tuple[jax.Array | None, jax.Array]:
        """Applies the network.

        Args:
          x: `[B, H, W, 3]` in [-1, 1] plus noise; H = W = `image_size` for the attention pool.
          t: scalar or `[B]`, raw index 0..999, int or float.
          y: `[B]` integer class labels, exactly if `num_classes` is set.
          train: apply dropout, with the key of the stream "dropout".
          head: False skips the head; the logits are then None.

        Returns:
          `(logits [B, out_channels], features [B, H/f, W/f, C])`, float32: the published phases
          "train" and "test"; with `pool="none"` the logits are `[B, H/f, W/f, out_channels]`.

        Raises:
          ValueError: shapes or widths that do not fit, unknown `pool`.
        """
        if self.pool not in ("attention", "adaptive", "none"):
            raise ValueError(f"pool is '{self.pool}': choose 'attention', 'adaptive' or 'none'.")
        h, _ = self._encode(x, self._embed(t, y, x.shape[0]), train)
        features = h.astype(jnp.float32)
        if not head:
            return None, features
        h = self._out_norm("I2Iout_0")(features)
        if self.pool == "attention":
            side = self.image_size // 2 ** (len(self.channel_mult) - 1)
            pool = AttentionPool(side, self.num_head_channels, self.out_channels, name="I2Iout_2")
            return pool(h), features
        # Published code starts this layer at zero. A contrastive loss divides by the length of the
        # embedding, so here it starts like other layers.
        if self.pool == "adaptive":
            h = h.mean(axis=(1, 2))
        return blocks.dense(h, self.out_channels, name="I2Iout_3"), features
