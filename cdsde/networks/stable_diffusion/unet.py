"""The conditional U-Net of SD-1.x (diffusers' UNet2DConditionModel).

`apply(..., mutable=["maps", "features"])` also returns cross-attention maps and features, as
collections under the paths of their modules; without `mutable` they are discarded. What some rows
of a batch take from others (plug-and-play, prompt-to-prompt) is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdsde.networks.blocks import adm_time_embedding
from cdsde.networks.stable_diffusion import layers


class Injection(NamedTuple):
    """What the last E rows of a batch take from other rows of it; None: nothing of this kind.

    Attributes:
      rows: `[E]` int, the row from which each of the last E rows takes.
      convolution: bool scalar: take the second convolution's output in `up_blocks.1.resnets.1`.
      attention: bool scalar: take queries and keys of self-attentions, hence their maps.
      most: the self-attentions that take part: those with at most so many positions; None: those of
        the decoder from `up_blocks.1.attentions.1` on, as plug-and-play has it.
      words: `(A [E, M, M], b [E, M])`: cross-attention maps p become p' A + b p, with the maps p'
        of the other row; column n of A tells the shares of the tokens of p' in token n.
    """

    rows: Any
    convolution: jax.Array | None = None
    attention: jax.Array | None = None
    most: int | None = None
    words: tuple[jax.Array, jax.Array] | None = None

    def of_layer(self, positions: int, place: tuple[int, int] | None) -> Injection:
        """What a transformer takes; `place` is its level and number in the decoder, if there."""
        late = place is not None and place >= (1, 1)
        chosen = late if self.most is None else positions <= self.most
        return self._replace(attention=self.attention if chosen else None)


def _taken(x: jax.Array, rows, active: jax.Array) -> jax.Array:
    """`x` with its last rows replaced by other rows of it where `active`."""
    first = len(x) - len(rows)
    taken = jnp.where(active, x[jnp.asarray(rows)], x[first:])
    return jnp.concatenate([x[:first], taken]) if first else taken


def _words_taken(p: jax.Array, rows, words: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-attention maps `[B, heads, L, M]` with the last rows replaced, see `Injection`."""
    first, (shares, kept) = len(p) - len(rows), words
    highest = jax.lax.Precision.HIGHEST
    other = jnp.einsum("bhlm,bmn->bhln", p[jnp.asarray(rows)], shares, precision=highest)
    return jnp.concatenate([p[:first], other + kept[:, None, None] * p[first:]])


def _of_layer(inject: Injection | None, x: jax.Array, place=None) -> Injection | None:
    """`Injection.of_layer` for the feature map `x`; None stays None."""
    return None if inject is None else inject.of_layer(x.shape[1] * x.shape[2], place)


class ResnetBlock(nn.Module):
    """Residual block: two convolutions, the time embedding added between them.

    The output is sown as a feature.
    """

    features: int
    groups: int = 32
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array | None = None, inject: Injection | None = None
    ) -> jax.Array:
        """`[B, H, W, C]` and time embedding `[B, E]` or None → `[B, H, W, features]`."""
        norm = layers.GroupNorm(self.groups, self.eps, self.dtype, name="norm1")
        h = layers.conv(self.features, 3, "conv1", dtype=self.dtype)(nn.silu(norm(x)))
        if time is not None:
            shift = layers.dense(self.features, "time_emb_proj", dtype=self.dtype)(nn.silu(time))
            h = h + shift[:, None, None]
        norm = layers.GroupNorm(self.groups, self.eps, self.dtype, name="norm2")
        h = layers.conv(self.features, 3, "conv2", dtype=self.dtype)(nn.silu(norm(h)))
        if inject is not None and inject.convolution is not None:
            h = _taken(h, inject.rows, inject.convolution)
        if x.shape[-1] != self.features:
            x = layers.conv(self.features, 1, "conv_shortcut", dtype=self.dtype)(x)
        out = x + h
        self.sow("features", "out", out)
        return out


class Attention(nn.Module):
    """Self-attention, or cross-attention whose maps are sown."""

    heads: int
    cross: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, inject: Injection | None = None
    ) -> jax.Array:
        """`[B, L, C]` and, for `cross`, `[B, M, D]` → `[B, L, C]`, before the residual."""
        width, other = x.shape[-1], context if self.cross else x
        q, k, v = (
            layers.split_heads(
                layers.dense(width, f"to_{n}", bias=False, dtype=self.dtype)(y), self.heads
            )
            for n, y in (("q", x), ("k", other), ("v", other))
        )
        if self.cross:
            p = layers.probabilities(q, k)
            if inject is not None and inject.words is not None:
                p = _words_taken(p, inject.rows, inject.words)
            self.sow("maps", "probabilities", p)
            out = layers.weigh(p, v)
        else:
            if inject is not None and inject.attention is not None:
                q, k = (_taken(y, inject.rows, inject.attention) for y in (q, k))
            out = layers.attend(q, k, v)
        out = layers.dense(width, "to_out.0", dtype=self.dtype)(out)
        if not self.cross:
            self.sow("features", "out", out)
        return out


class TransformerBlock(nn.Module):
    """Residual self-attention, cross-attention and gated feed-forward, each after a norm."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, inject: Injection | None = None
    ) -> jax.Array:
        """`[B, L, C]` → the same."""
        h = layers.layer_norm("norm1", dtype=self.dtype)(x)
        x = x + Attention(self.heads, False, self.dtype, name="attn1")(h, inject=inject)
        h = layers.layer_norm("norm2", dtype=self.dtype)(x)
        x = x + Attention(self.heads, True, self.dtype, name="attn2")(h, context, inject)
        h = layers.layer_norm("norm3", dtype=self.dtype)(x)
        width = x.shape[-1]
        h, gate = jnp.split(layers.dense(8 * width, "ff.net.0.proj", dtype=self.dtype)(h), 2, -1)
        return x + layers.dense(width, "ff.net.2", dtype=self.dtype)(h * layers.gelu(gate))


class SpatialTransformer(nn.Module):
    """A residual transformer block over the positions of a feature map."""

    heads: int
    groups: int = 32
    linear: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, inject: Injection | None = None
    ) -> jax.Array:
        """`[B, H, W, C]` → the same."""
        b, height, width, c = x.shape
        h = layers.GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)

        def project(h, name):
            if self.linear:
                return layers.dense(c, name, dtype=self.dtype)(h)
            return layers.conv(c, 1, name, dtype=self.dtype)(h)

        h = project(h, "proj_in").reshape(b, height * width, c)
        h = TransformerBlock(self.heads, self.dtype, name="transformer_blocks.0")(
            h, context, inject
        )
        return x + project(h.reshape(b, height, width, c), "proj_out")


class UNet(nn.Module):
    """Predicts the noise of a latent from its time index and a text.

    Attributes:
      widths: channels of each level.
      attention: whether each level has transformers, in encoder order.
      blocks: residual blocks per level of the encoder (the decoder has one more).
      heads: attention heads of each level.
      groups, eps: groups and epsilon of the normalisation.
      out_channels: channels of the output.
      linear: whether linear layers rather than convolutions project around the transformers.
      dtype: compute dtype of products and convolutions.
      remat: whether the backward pass recomputes transformers and residual blocks.
    """

    widths: Sequence[int] = (320, 640, 1280, 1280)
    attention: Sequence[bool] = (True, True, True, False)
    blocks: int = 2
    heads: Sequence[int] = (8, 8, 8, 8)
    groups: int = 32
    eps: float = 1e-5
    out_channels: int = 4
    linear: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: jax.Array,
        inject: Injection | None = None,
    ) -> jax.Array:
        """Predicts the noise.

        Args:
          x: `[B, H, W, 4]` latents, H and W multiples of 2^(levels - 1).
          t: index 0..999, scalar or `[B]`.
          context: `[B, M, D]`, hidden states of the text.
          inject: what rows of the batch take from others, see `Injection`.

        Returns:
          `[B, H, W, 4]` float32.

        Raises:
          ValueError: H or W is not a multiple of 2^(levels - 1).
        """
        halvings = 2 ** (len(self.widths) - 1)
        if x.shape[1] % halvings or x.shape[2] % halvings:
            raise ValueError(
                f"latents of {x.shape[1]}x{x.shape[2]} cannot be halved {len(self.widths) - 1} "
                f"times: sides must be multiples of {halvings} (of images, {8 * halvings})"
            )
        time = self._time(jnp.broadcast_to(jnp.asarray(t), x.shape[:1]))
        context = context.astype(self.dtype)
        x = layers.conv(self.widths[0], 3, "conv_in", dtype=self.dtype)(x.astype(self.dtype))
        x, skips = self._down(x, time, context, inject)
        x = self._middle(x, time, context, inject)
        x = self._up(x, skips, time, context, inject)
        x = layers.GroupNorm(self.groups, self.eps, name="conv_norm_out")(x)
        return layers.conv(self.out_channels, 3, "conv_out")(nn.silu(x))

    def _down(self, x, time, context, inject) -> tuple[jax.Array, list[jax.Array]]:
        """Output of the encoder, and the activations that the decoder concatenates."""
        skips = [x]
        for level, width in enumerate(self.widths):
            name = f"down_blocks.{level}"
            for n in range(self.blocks):
                x = self._resnet(width, f"{name}.resnets.{n}")(x, time)
                if self.attention[level]:
                    transformer = self._transformer(level, f"{name}.attentions.{n}")
                    x = transformer(x, context, _of_layer(inject, x))
                skips.append(x)
            if level < len(self.widths) - 1:
                down = f"{name}.downsamplers.0.conv"
                x = layers.conv(width, 3, down, stride=2, dtype=self.dtype)(x)
                skips.append(x)
        return x, skips

    def _middle(self, x, time, context, inject) -> jax.Array:
        x = self._resnet(self.widths[-1], "mid_block.resnets.0")(x, time)
        transformer = self._transformer(len(self.widths) - 1, "mid_block.attentions.0")
        x = transformer(x, context, _of_layer(inject, x))
        return self._resnet(self.widths[-1], "mid_block.resnets.1")(x, time)

    def _up(self, x, skips, time, context, inject: Injection | None) -> jax.Array:
        for up, level in enumerate(reversed(range(len(self.widths)))):
            name = f"up_blocks.{up}"
            for n in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                resnet = self._resnet(self.widths[level], f"{name}.resnets.{n}")
                x = resnet(x, time, inject if (up, n) == (1, 1) else None)
                if self.attention[level]:
                    transformer = self._transformer(level, f"{name}.attentions.{n}")
                    x = transformer(x, context, _of_layer(inject, x, (up, n)))
            if level > 0:
                conv = layers.conv(
                    self.widths[level], 3, f"{name}.upsamplers.0.conv", dtype=self.dtype
                )
                x = conv(layers.upsample(x))
        return x

    def _time(self, t: jax.Array) -> jax.Array:
        width = 4 * self.widths[0]
        h = layers.dense(width, "time_embedding.linear_1")(adm_time_embedding(t, self.widths[0]))
        return layers.dense(width, "time_embedding.linear_2")(nn.silu(h))

    def _resnet(self, width: int, name: str) -> ResnetBlock:
        block = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        return block(width, self.groups, self.eps, self.dtype, name=name)

    def _transformer(self, level: int, name: str) -> SpatialTransformer:
        block = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        return block(self.heads[level], self.groups, self.linear, self.dtype, name=name)
