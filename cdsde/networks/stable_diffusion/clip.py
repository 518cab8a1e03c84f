"""CLIP's text and image encoders (transformers' CLIPTextModel and CLIPModel)."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdsde.networks.stable_diffusion import layers


class Encoder(nn.Module):
    """Transformer layers: residual attention and MLP, each after a norm."""

    depth: int
    heads: int
    mlp: int
    activation: str = "quick_gelu"
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """`[B, L, C]` and a bool mask that broadcasts to `[B, heads, L, L]` → `[B, L, C]`."""
        width = x.shape[-1]
        for n in range(self.depth):
            name = f"layers.{n}"
            h = layers.layer_norm(f"{name}.layer_norm1", self.eps, self.dtype)(x)
            q, k, v = (
                layers.split_heads(
                    layers.dense(width, f"{name}.self_attn.{p}_proj", dtype=self.dtype)(h),
                    self.heads,
                )
                for p in "qkv"
            )
            h = layers.weigh(layers.probabilities(q, k, mask), v)
            x = x + layers.dense(width, f"{name}.self_attn.out_proj", dtype=self.dtype)(h)
            h = layers.layer_norm(f"{name}.layer_norm2", self.eps, self.dtype)(x)
            h = layers.dense(self.mlp, f"{name}.mlp.fc1", dtype=self.dtype)(h)
            h = layers.ACTIVATIONS[self.activation](h)
            x = x + layers.dense(width, f"{name}.mlp.fc2", dtype=self.dtype)(h)
        return x


class Encoded(NamedTuple):
    """Output of an encoder.

    Attributes:
      hidden: `[B, L, C]`, hidden states: of text after the last norm, of images before it.
      pooled: `[B, C]`, state at the end token (text) or class token (image), after the last norm.
    """

    hidden: jax.Array
    pooled: jax.Array


class TextTransformer(nn.Module):
    """Text encoder with causal attention: token ids → hidden states."""

    vocabulary: int = 49408
    positions: int = 77
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: str = "quick_gelu"
    eps: float = 1e-5
    end: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> Encoded:
        """Ids, int `[B, L]` → `Encoded`.

        Raises:
          ValueError: L exceeds `positions`.
        """
        length = ids.shape[1]
        if length > self.positions:
            raise ValueError(f"{length} tokens are more than the {self.positions} of the encoder")
        token = nn.Embed(self.vocabulary, self.width, name="embeddings.token_embedding")
        position = nn.Embed(self.positions, self.width, name="embeddings.position_embedding")
        x = (token(ids) + position(jnp.arange(length))[None]).astype(self.dtype)
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        encoder = Encoder(
            self.depth, self.heads, self.mlp, self.activation, self.eps, self.dtype, name="encoder"
        )
        x = layers.layer_norm("final_layer_norm", self.eps)(encoder(x, mask))
        # The first end token counts. Published configs name id 2 where it is the largest id.
        end = jnp.argmax(ids if self.end == 2 else ids == self.end, axis=-1)
        return Encoded(x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])


class VisionTransformer(nn.Module):
    """Image encoder: images → hidden states of a class token and of their patches."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: int = 4096
    activation: str = "quick_gelu"
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Encoded:
        """`[B, S, S, 3]`, normalised by CLIP's mean and deviation → `Encoded`.

        Raises:
          ValueError: S is not `image_size`.
        """
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"the image encoder takes {self.image_size}x{self.image_size} pixels, not "
                f"{x.shape[1]}x{x.shape[2]}: resize the images"
            )
        b, size = x.shape[0], (self.patch_size, self.patch_size)
        patches = nn.Conv(
            self.width, size, size, "VALID", use_bias=False, name="embeddings.patch_embedding",
            dtype=self.dtype,
        )(x).reshape(b, -1, self.width)  # fmt: skip
        token = _ClassToken(self.width, name="embeddings")()
        x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)), patches], axis=1)
        position = nn.Embed(x.shape[1], self.width, name="embeddings.position_embedding")
        x = x + position(jnp.arange(x.shape[1]))[None]
        x = layers.layer_norm("pre_layrnorm", self.eps, self.dtype)(x)  # the published spelling
        encoder = Encoder(
            self.depth, self.heads, self.mlp, self.activation, self.eps, self.dtype, name="encoder"
        )
        x = encoder(x)
        return Encoded(x, layers.layer_norm("post_layernorm", self.eps)(x[:, 0]))


class _ClassToken(nn.Module):
    """The embedding of the class token, `[width]`."""

    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(0.02)
        return self.param("class_embedding", init, (self.width,), jnp.float32)


class CLIPTextModel(nn.Module):
    """The text encoder without projection, as in SD-1.x."""

    text: TextTransformer

    def setup(self):
        """Creates the encoder under its published name."""
        self.text_model = self.text.clone(name=None)

    def __call__(self, ids: jax.Array) -> Encoded:
        """Ids `[B, L]` → `Encoded`."""
        return self.text_model(ids)


class CLIP(nn.Module):
    """Text and image encoder with projections into a common space."""

    text: TextTransformer
    vision: VisionTransformer
    projection: int = 768

    def setup(self):
        """Creates the parts under their published names."""
        self.text_model = self.text.clone(name=None)
        self.vision_model = self.vision.clone(name=None)
        self.text_projection = layers.dense(self.projection, None, bias=False)
        self.visual_projection = layers.dense(self.projection, None, bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def __call__(self, ids: jax.Array, images: jax.Array) -> jax.Array:
        """Cosine similarities `[texts, images]`."""
        text, image = self.embed_text(ids), self.embed_image(images)
        text, image = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (text, image))
        return text @ image.T

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Ids `[B, L]` → embeddings `[B, projection]`, not normalised."""
        return self.text_projection(self.text_model(ids).pooled)

    def embed_image(self, images: jax.Array) -> jax.Array:
        """Images `[B, S, S, 3]` → embeddings `[B, projection]`, not normalised."""
        return self.visual_projection(self.vision_model(images).pooled)
