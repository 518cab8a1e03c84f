"""DiT (Peebles and Xie 2023): a transformer over the patches of an image or of a latent.

Parameters are float32; normalisation, softmax and embeddings are computed in float32 whatever the
compute dtype of products. Module names are the published ones.
Source: github.com/facebookresearch/DiT, models.py, with the blocks of timm.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks import blocks

EPS = 1e-6
FREQUENCIES = 256  # width of the time's embedding before its layers


def positions(side: int, width: int) -> np.ndarray:
    """Embeddings of the patches of a square, row by row: `[side², width]` float32.

    The first half of the channels is of the column, the second of the row; each half has sines,
    then cosines.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies[None, :]
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    column, row = np.tile(one, (side, 1)), np.repeat(one, side, axis=0)
    return np.concatenate([column, row], axis=1).astype(np.float32)


def _normalised(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Layer normalisation of `[B, T, C]`, then `x (1 + scale) + shift` with `[B, C]`, float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPS)
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


class Block(nn.Module):
    """Attention and MLP, both shifted, scaled and gated by time and class."""

    heads: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """`[B, T, C]` and SiLU of the embedding `[B, C]` -> `[B, T, C]`."""
        width = x.shape[-1]
        six = blocks.dense(c, 6 * width, name="adaLN_modulation.1", zero=True)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(six, 6, axis=-1)
        h = _normalised(x, shift, scale)
        qkv = blocks.dense(h, 3 * width, name="attn.qkv", dtype=self.dtype)
        h = blocks.attend(*blocks.split_qkv(qkv, self.heads, new_order=True)).reshape(x.shape)
        h = blocks.dense(h, width, name="attn.proj", dtype=self.dtype)
        x = x + gate[:, None, :].astype(self.dtype) * h
        h = _normalised(x, shift_mlp, scale_mlp)
        h = blocks.dense(h, self.hidden, name="mlp.fc1", dtype=self.dtype)
        h = jax.nn.gelu(h, approximate=True)
        h = blocks.dense(h, width, name="mlp.fc2", dtype=self.dtype)
        return x + gate_mlp[:, None, :].astype(self.dtype) * h


class DiT(nn.Module):
    """Predicts the noise of an image of a class and, with `learn_sigma`, the variance's share.

    Attributes:
      input_size: side of the images (of the latents, where it works on latents).
      patch_size: side of a patch; in_channels: channels of the images.
      hidden_size, depth, num_heads, mlp_ratio: of the transformer.
      num_classes: classes 0 … num_classes-1.
      null_class: whether the class `num_classes` stands for any class.
      learn_sigma: the output has 2 `in_channels` channels, the noise first.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | float, y: jax.Array | None = None) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, input_size, input_size, in_channels]`, the image plus noise.
          t: scalar or `[B]`, raw index 0..999, int or float.
          y: `[B]` integer class labels; None is the null class.

        Returns:
          `[B, input_size, input_size, in_channels]` float32, 2 `in_channels` with `learn_sigma`.

        Raises:
          ValueError: shapes or fields that do not fit; `y` is None and there is no null class.
        """
        self._check(x)
        if y is None:
            if not self.null_class:
                raise ValueError("this DiT has no null class: pass class labels y.")
            y = jnp.full(x.shape[0], self.num_classes)
        t = blocks.adm_time_embedding(blocks.batch_of_indices(t, x.shape[0]), FREQUENCIES)
        t = nn.silu(blocks.dense(t, self.hidden_size, name="t_embedder.mlp.0"))
        t = blocks.dense(t, self.hidden_size, name="t_embedder.mlp.2")
        table = nn.Embed(
            self.num_classes + self.null_class,
            self.hidden_size,
            embedding_init=nn.initializers.normal(0.02),
            name="y_embedder.embedding_table",
        )
        c = nn.silu(t + table(y))

        side, patch = self.input_size // self.patch_size, self.patch_size
        options = {"stride": patch, "padding": ((0, 0), (0, 0)), "dtype": self.dtype}
        x = blocks.conv(x, self.hidden_size, name="x_embedder.proj", kernel=patch, **options)
        x = x.reshape(x.shape[0], side * side, self.hidden_size)
        # Stored in published files, though it never changes.
        init = lambda key: jnp.asarray(positions(side, self.hidden_size))[None]  # noqa: E731
        x = x + self.param("pos_embed", init).astype(self.dtype)
        for n in range(self.depth):
            hidden = int(self.hidden_size * self.mlp_ratio)
            x = Block(self.num_heads, hidden, self.dtype, name=f"blocks.{n}")(x, c)

        two = blocks.dense(
            c, 2 * self.hidden_size, name="final_layer.adaLN_modulation.1", zero=True
        )
        x = _normalised(x, *jnp.split(two, 2, axis=-1))
        channels = self.in_channels * (2 if self.learn_sigma else 1)
        x = blocks.dense(x, patch * patch * channels, name="final_layer.linear", zero=True)
        x = x.reshape(-1, side, side, patch, patch, channels).swapaxes(2, 3)
        return x.reshape(-1, self.input_size, self.input_size, channels)

    def _check(self, x) -> None:
        shape = (self.input_size, self.input_size, self.in_channels)
        if x.ndim != 4 or x.shape[1:] != shape:
            raise ValueError(
                f"input has shape {x.shape}: this DiT takes [B, {', '.join(map(str, shape))}]."
            )
        for whole, part in (("input_size", "patch_size"), ("hidden_size", "num_heads")):
            if getattr(self, part) < 1 or getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part}={getattr(self, part)} does not divide {whole}={getattr(self, whole)}."
                )
