"""BLIP's captioner (transformers' BlipForConditionalGeneration): image → sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cdsde.networks.stable_diffusion import layers


class Vision(nn.Module):
    """Image encoder: images → hidden states of a class token and of their patches."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: str = "gelu"
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, S, S, 3]`, normalised by CLIP's mean and deviation → `[B, 1 + patches, width]`.

        Raises:
          ValueError: S is not `image_size`.
        """
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"the captioner takes {self.image_size}x{self.image_size} pixels, not "
                f"{x.shape[1]}x{x.shape[2]}: resize the images"
            )
        b, size = x.shape[0], (self.patch_size, self.patch_size)
        conv = nn.Conv(self.width, size, size, "VALID", name="embeddings.patch_embedding")
        patches = conv(x).reshape(b, -1, self.width)
        x = _Embeddings(patches.shape[1] + 1, name="embeddings")(patches)
        for n in range(self.depth):
            name = f"encoder.layers.{n}"
            h = layers.layer_norm(f"{name}.layer_norm1", self.eps)(x)
            qkv = layers.dense(3 * self.width, f"{name}.self_attn.qkv")(h)
            q, k, v = (layers.split_heads(y, self.heads) for y in jnp.split(qkv, 3, axis=-1))
            h = layers.weigh(layers.probabilities(q, k), v)
            x = x + layers.dense(self.width, f"{name}.self_attn.projection")(h)
            h = layers.layer_norm(f"{name}.layer_norm2", self.eps)(x)
            h = layers.ACTIVATIONS[self.activation](layers.dense(self.mlp, f"{name}.mlp.fc1")(h))
            x = x + layers.dense(self.width, f"{name}.mlp.fc2")(h)
        return layers.layer_norm("post_layernorm", self.eps)(x)


class _Embeddings(nn.Module):
    """Adds class token and positions, whose published parameters have leading axes of 1."""

    length: int

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        width, init = patches.shape[-1], nn.initializers.normal(0.02)
        token = self.param("class_embedding", init, (1, 1, width), jnp.float32)
        position = self.param("position_embedding", init, (1, self.length, width), jnp.float32)
        token = jnp.broadcast_to(token, (patches.shape[0], 1, width))
        return jnp.concatenate([token, patches], axis=1) + position


class Decoder(nn.Module):
    """Causal BERT with cross-attention to the image: predicts the next token."""

    vocabulary: int = 30524
    positions: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: str = "gelu"
    eps: float = 1e-12

    @nn.compact
    def __call__(self, ids: jax.Array, image: jax.Array) -> jax.Array:
        """Ids `[B, L]` and image states `[B, M, D]` → next-token logits `[B, L, vocabulary]`."""
        length = ids.shape[1]
        word = nn.Embed(self.vocabulary, self.width, name="bert.embeddings.word_embeddings")
        position = nn.Embed(self.positions, self.width, name="bert.embeddings.position_embeddings")
        x = word(ids) + position(jnp.arange(length))[None]
        x = layers.layer_norm("bert.embeddings.LayerNorm", self.eps)(x)
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        act = layers.ACTIVATIONS[self.activation]
        for n in range(self.depth):
            name = f"bert.encoder.layer.{n}"
            x = self._attend(x, x, f"{name}.attention", mask)
            x = self._attend(x, image, f"{name}.crossattention")
            h = act(layers.dense(self.mlp, f"{name}.intermediate.dense")(x))
            h = layers.dense(self.width, f"{name}.output.dense")(h)
            x = layers.layer_norm(f"{name}.output.LayerNorm", self.eps)(h + x)
        h = act(layers.dense(self.width, "cls.predictions.transform.dense")(x))
        h = layers.layer_norm("cls.predictions.transform.LayerNorm", self.eps)(h)
        return layers.dense(self.vocabulary, "cls.predictions.decoder")(h)

    def _attend(self, x, other, name, mask=None):
        """Residual attention of `x` to `other`, followed by a norm."""
        q = layers.dense(self.width, f"{name}.self.query")(x)
        k, v = (layers.dense(self.width, f"{name}.self.{n}")(other) for n in ("key", "value"))
        q, k, v = (layers.split_heads(y, self.heads) for y in (q, k, v))
        h = layers.weigh(layers.probabilities(q, k, mask), v)
        h = layers.dense(self.width, f"{name}.output.dense")(h)
        return layers.layer_norm(f"{name}.output.LayerNorm", self.eps)(h + x)


class BLIP(nn.Module):
    """The captioner: image encoder and text decoder.

    Attributes:
      vision: the image encoder.
      text: the text decoder.
      begin, end, pad: ids of the special tokens.
    """

    vision: Vision
    text: Decoder
    begin: int = 30522
    end: int = 102
    pad: int = 0

    def setup(self):
        """Creates both parts under their published names."""
        self.vision_model = self.vision.clone(name=None)
        self.text_decoder = self.text.clone(name=None)

    def __call__(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Images `[B, S, S, 3]` and ids `[B, L]` → next-token logits `[B, L, vocabulary]`."""
        return self.decode(ids, self.encode(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images `[B, S, S, 3]` → hidden states `[B, M, D]`."""
        return self.vision_model(images)

    def decode(self, ids: jax.Array, image: jax.Array) -> jax.Array:
        """Ids `[B, L]` and image states `[B, M, D]` → next-token logits `[B, L, vocabulary]`."""
        return self.text_decoder(ids, image)


def caption_ids(
    module: BLIP,
    params: Any,
    images: jax.Array,
    prompt: Sequence[int] = (),
    tokens: int = 30,
    beams: int = 1,
) -> np.ndarray:
    """Captions of images, by greedy or beam search.

    One compiled program serves all lengths: rows are padded to their final length, and the causal
    mask hides the padding.

    Args:
      module, params: the captioner.
      images: `[B, S, S, 3]`, normalised by CLIP's mean and deviation.
      prompt: ids after the begin token, the same for all images.
      tokens: maximal number of tokens after the prompt.
      beams: number of beams; 1 is greedy search.

    Returns:
      int32 `[B, L]`: begin token, prompt, caption, end token and padding to the longest row.
    """
    encode = jax.jit(lambda p, x: module.apply(p, x, method="encode"))
    next_logits = jax.jit(
        lambda p, ids, image, position: jax.nn.log_softmax(
            module.apply(p, ids, image, method="decode")[:, position]
        )
    )
    encoded = encode(params, images)
    start = [module.begin, *prompt]
    rows = []
    for image in encoded:
        image = jnp.repeat(image[None], beams, axis=0)

        def scores(ids, image=image):
            padded = np.full((beams, len(start) + tokens), module.pad, np.int32)
            padded[:, : ids.shape[1]] = ids
            return np.asarray(next_logits(params, padded, image, ids.shape[1] - 1), np.float64)

        rows.append(_search(scores, start, tokens, beams, module.end))
    length = max(map(len, rows))
    return np.array([[*row, *[module.pad] * (length - len(row))] for row in rows], np.int32)


def _search(scores, start, tokens: int, beams: int, end: int) -> list[int]:
    """Beam search as in transformers; a finished sentence scores its mean log probability.

    The search ends when no open sentence scores better than the worst of `beams` finished ones.
    """
    alive = np.repeat(np.array([start], np.int32), beams, axis=0)
    total = np.full(beams, -1e9)
    total[0] = 0.0  # all beams start equal: extend only the first
    finished: list[tuple[float, list[int]]] = []
    for _ in range(tokens):
        candidates = total[:, None] + scores(alive)
        order = np.argsort(-candidates, axis=None, kind="stable")[: 2 * beams]
        rows, values, kept = [], [], 0
        for rank, flat in enumerate(order):
            beam, token = divmod(int(flat), candidates.shape[1])
            row, value = [*alive[beam].tolist(), token], candidates[beam, token]
            if token == end:
                if rank < beams:
                    finished.append((value / (len(row) - len(start)), row))
            elif kept < beams:
                rows.append(row)
                values.append(value)
                kept += 1
        finished = sorted(finished, key=lambda f: -f[0])[:beams]
        if beams == 1 and finished:
            return finished[0][1]
        alive, total = np.array(rows, np.int32), np.array(values)
        best = total[0] / (alive.shape[1] - len(start))
        if len(finished) == beams and best <= finished[-1][0]:
            break
    else:
        length = alive.shape[1] - len(start)
        finished += [(t / length, row.tolist()) for t, row in zip(total, alive, strict=True)]
    return max(finished, key=lambda f: f[0])[1]
