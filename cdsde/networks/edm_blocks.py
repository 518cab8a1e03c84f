"""What the two U-Nets of EDM (Karras et al. 2022) share: the residual block, labels, levels.

Both map images `[B, H, W, C]` and the network's own time input, `c_noise`, to the raw output F,
float32; `diffusion.paths` turns F into the noise. `dtype` is the compute dtype of
convolutions and matrix products. Modules have the published names.
Source: github.com/NVlabs/edm, training/networks.py.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks import blocks, fir

SONG_EPS = 1e-6
DHARIWAL_EPS = 1e-5
GROUP_CHANNELS = 4  # minimum of a normalisation group
MEAN = (1, 1)  # the filter that averages and repeats


def resampled(x: jax.Array, way: str, taps: Sequence[float]) -> jax.Array:
    """`[B, H, W, C]` with half ("down") or twice ("up") the sides, by the filter `taps`."""
    if tuple(taps) == MEAN:
        return blocks.downsample_mean(x) if way == "down" else blocks.upsample_nearest(x)
    # EDM turns the filter round on the way up alone.
    return fir.downsample(x, taps[::-1]) if way == "down" else fir.upsample(x, taps)


def frequencies(width: int, endpoint: bool) -> np.ndarray:
    """10000^(-i/h), or 10000^(-i/(h - 1)) with `endpoint`, for i < h = width / 2: float32 `[h]`.

    The exponent, the base and the result are each rounded to float32, as in PyTorch.
    """
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) / np.float32(half - endpoint)
    base = np.float64(np.float32(1e-4))
    return (base ** exponents.astype(np.float64)).astype(np.float32)


class Block(nn.Module):
    """Residual block with resampling before it and attention after it, each if asked for.

    Attributes:
      features: number of output channels.
      resample: None, "up" or "down".
      taps: filter of the resampling.
      heads: number of attention heads; 0 means no attention.
      song: SongUNet's form: the embedding shifts before the second normalisation (DhariwalUNet's
        scales and shifts after it), sums are divided by √2, and each resampling block has a
        convolution in its skip connection.
    """

    features: int
    resample: str | None = None
    taps: Sequence[float] = MEAN
    heads: int = 0
    song: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """`[B, H, W, C]` and SiLU of the embedding `[B, E]` float32 -> `[B, H', W', features]`."""
        conv = blocks.conv
        project = x.shape[-1] != self.features or (self.song and self.resample is not None)
        h = self._norm("norm0", True)(x)
        if self.resample is not None:
            h, x = (resampled(a, self.resample, self.taps) for a in (h, x))
        h = conv(h, self.features, name="conv0", dtype=self.dtype)
        norm = self._norm("norm1", True)
        if self.song:
            emb = blocks.dense(emb, self.features, name="affine")
            h = norm(h + emb[:, None, None, :].astype(self.dtype))
        else:
            emb = blocks.dense(emb, 2 * self.features, name="affine")
            h = norm(h, jnp.split(emb, 2, axis=-1))
        h = conv(h, self.features, name="conv1", zero=True, dtype=self.dtype)
        if project:
            x = conv(x, self.features, kernel=1, name="skip", dtype=self.dtype)
        x = self._scaled(x + h)
        return self._scaled(x + self._attention(x)) if self.heads else x

    def _attention(self, x):
        b, height, width, c = x.shape
        h = blocks.conv(
            self._norm("norm2", False)(x), 3 * c, kernel=1, name="qkv", dtype=self.dtype
        )
        # Channels are ordered [head, channel, (q, k, v)].
        h = h.reshape(b, height * width, self.heads, c // self.heads, 3)
        h = blocks.attend(h[..., 0], h[..., 1], h[..., 2]).reshape(x.shape)
        return blocks.conv(h, c, kernel=1, name="proj", zero=True, dtype=self.dtype)

    def _scaled(self, x):
        return x * np.sqrt(0.5).astype(x.dtype) if self.song else x

    def _norm(self, name, silu):
        eps = SONG_EPS if self.song else DHARIWAL_EPS
        return blocks.GroupNorm(eps, silu, GROUP_CHANNELS, self.dtype, name=name)


class Base(nn.Module):
    """Fields and embeddings of both networks.

    A level has mult * channels channels. `image_size` names the levels and says, with
    `attention_resolutions`, which of them have attention; images of any size that the downsampling
    divides may be passed. `num_classes` and `augment_dim` are 0 where a network takes no labels.
    """

    image_size: int = 64
    out_channels: int = 3
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    num_classes: int = 0
    augment_dim: int = 0
    dtype: Any = jnp.float32

    def labels(self, y, batch: int) -> jax.Array:
        """One-hot labels `[B, num_classes]` float32, zeros where y is None."""
        if y is None:
            return jnp.zeros((batch, self.num_classes), jnp.float32)
        if not self.num_classes:
            raise ValueError("class labels y were passed to a network without classes: leave them.")
        return jax.nn.one_hot(y, self.num_classes, dtype=jnp.float32)

    def augmented(self, emb, augment):
        """The embedding `[B, E]` plus that of the augmentation labels, if there are any."""
        if augment is not None and not self.augment_dim:
            raise ValueError(
                "augmentation labels were passed to a network without them: leave them."
            )
        if not self.augment_dim:
            return emb
        if augment is None:
            augment = jnp.zeros((emb.shape[0], self.augment_dim), jnp.float32)
        return emb + nn.Dense(emb.shape[-1], use_bias=False, name="map_augment")(augment)

    def levels(self) -> list[tuple[str, int, bool]]:
        """Prefix of the names, width, and whether there is attention, of each level."""
        sizes = [self.image_size >> level for level in range(len(self.channel_mult))]
        return [
            (f"{size}x{size}", self.channels * mult, size in self.attention_resolutions)
            for size, mult in zip(sizes, self.channel_mult, strict=True)
        ]
