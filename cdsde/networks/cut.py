"""CUT's three networks (Park et al. 2020): generator, PatchGAN discriminator, patch sampler.

Images and feature maps are `[B, H, W, C]`, images in [-1, 1]; parameters are float32; normalisation
is per image, in float32 whatever the compute dtype. Modules have the names of the published
sequences (`model_12/conv_block_1` <-> `model.12.conv_block.1`); the fixed blur kernels are not
parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdsde.networks import convolution, normalisation

EPS = 1e-5
# Published initialisation of all weights; all biases start at 0.
SMALL = nn.initializers.variance_scaling(0.02**2, "fan_avg", "normal")


def normalise(x: jax.Array, group: int = 1) -> jax.Array:
    """`[B, H, W, C]`: mean 0 and variance 1 over each image's positions and `group` channels.

    One channel per group is instance norm, as published. For a flat object on white it keeps only
    the sign of each channel's deviation from white, so hue but not lightness: a yellow hand may
    come out black. Wider groups preserve the ratios between the channels' deviations.
    """
    channels = x.shape[-1]
    positions = x.reshape(x.shape[0], -1, channels)
    # With the gradient that JAX derives: biases before an instance norm have none, and its rounding
    # errors stay nearer to 0 than those of `normalisation.normalise`.
    y, inverse = normalisation.deviations(positions, channels // group, EPS)
    return (y * inverse[:, None, :]).reshape(x.shape).astype(x.dtype)


def pad(x: jax.Array, by: int, mode: str) -> jax.Array:
    """Pads `by` rows and columns on each side; `mode` is "reflect" or "edge"."""
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0)), mode=mode)


def blur_down(x: jax.Array) -> jax.Array:
    """Blurs with (1, 2, 1)/4 along both axes, borders reflected, and keeps every other pixel.

    `[B, H, W, C]` → `[B, ⌈H/2⌉, ⌈W/2⌉, C]`.
    """
    x = pad(x, 1, "reflect")
    x = (x[:, :-2:2] + 2 * x[:, 1:-1:2] + x[:, 2::2]) / 4
    return (x[:, :, :-2:2] + 2 * x[:, :, 1:-1:2] + x[:, :, 2::2]) / 4


def blur_up(x: jax.Array) -> jax.Array:
    """Doubles the sides by interpolation with weights (1, 3)/4, borders repeated.

    `[B, H, W, C]` → `[B, 2H, 2W, C]`.
    """
    x = pad(x, 1, "edge")
    for axis in (1, 2):
        before, here, after = (
            jax.lax.slice_in_dim(x, n, x.shape[axis] - 2 + n, axis=axis) for n in range(3)
        )
        even, odd = 0.25 * before + 0.75 * here, 0.75 * here + 0.25 * after
        x = jnp.stack([even, odd], axis=axis + 1)
        shape = list(here.shape)
        shape[axis] *= 2
        x = x.reshape(shape)
    return x


def _conv(features: int, size: int, name: str, padding: int = 0, dtype: Any = jnp.float32):
    return convolution.Conv(
        features,
        size,
        ((padding, padding), (padding, padding)),
        kernel_init=SMALL,
        dtype=dtype,
        name=name,
    )


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with reflected borders."""

    group_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` → the same shape."""
        features = x.shape[-1]
        h = _conv(features, 3, "conv_block_1", dtype=self.dtype)(pad(x, 1, "reflect"))
        h = pad(nn.relu(normalise(h, self.group_channels)), 1, "reflect")
        h = _conv(features, 3, "conv_block_5", dtype=self.dtype)(h)
        return x + normalise(h, self.group_channels)


class CUTGenerator(nn.Module):
    """The published ResNet generator, one flat sequence of numbered entries.

    Attributes:
      channels: ngf, channels of the first convolution.
      num_blocks: residual blocks, 9 or 6.
      out_channels: channels of the image.
      group_channels: channels per normalisation group; published: 1.
      dtype: compute dtype of convolutions.
    """

    channels: int = 64
    num_blocks: int = 9
    out_channels: int = 3
    group_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, layers: Sequence[int] = (), encode_only: bool = False):
        """Translates images, or returns the features that CUT compares.

        Args:
          x: `[B, H, W, 3]` in [-1, 1], H and W multiples of 4.
          layers: ascending indices of the entries whose outputs are returned: 0 is the padded
            image, 4 and 8 are convolutions before their normalisation, 12 and 16 residual blocks.
          encode_only: stop after the last of `layers`.

        Returns:
          The image, `[B, H, W, 3]` in (-1, 1), float32. With `layers`, `(image, features)`:
          features is a list of `[B, h, w, C]`; with `encode_only` the features alone.

        Raises:
          ValueError: H or W is not a multiple of 4.
        """
        if x.shape[1] % 4 or x.shape[2] % 4:
            raise ValueError(
                f"the generator halves images twice: sides must be multiples of 4, not "
                f"{x.shape[1]}x{x.shape[2]}."
            )
        features, last = [], max(layers, default=-1)
        for index, entry in enumerate(self._entries()):
            x = entry(x)
            if index in layers:
                features.append(x.astype(jnp.float32))
            if encode_only and index >= last:
                return features
        image = x.astype(jnp.float32)
        return (image, features) if layers else image

    def _entries(self):
        """The entries of the sequence; each module is created when its turn comes."""
        c, n, dtype = self.channels, self.num_blocks, self.dtype
        norm = functools.partial(normalise, group=self.group_channels)
        yield lambda x: pad(x, 3, "reflect")
        yield _conv(c, 7, "model_1", dtype=dtype)
        yield from (norm, nn.relu)
        for index, width in ((4, 2 * c), (8, 4 * c)):
            yield _conv(width, 3, f"model_{index}", 1, dtype)
            yield from (norm, nn.relu, blur_down)
        for block in range(n):
            yield ResnetBlock(self.group_channels, dtype, name=f"model_{12 + block}")
        for index, width in ((13 + n, 2 * c), (17 + n, c)):
            yield blur_up
            yield _conv(width, 3, f"model_{index}", 1, dtype)
            yield from (norm, nn.relu)
        yield lambda x: pad(x, 3, "reflect")
        yield _conv(self.out_channels, 7, f"model_{21 + n}", dtype=dtype)
        yield nn.tanh


class PatchDiscriminator(nn.Module):
    """The published PatchGAN: one logit for each overlapping patch of an image.

    Attributes:
      channels: ndf, channels of the first convolution.
      num_layers: number of convolutions with normalisation.
      group_channels: channels per normalisation group; published: 1.
      dtype: compute dtype of convolutions.
    """

    channels: int = 64
    num_layers: int = 3
    group_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, 3]` → logits `[B, h, w, 1]`, float32; side 256 → 30."""
        x = _conv(self.channels, 4, "model_0", 1, self.dtype)(x)
        x = blur_down(nn.leaky_relu(x, 0.2))
        for layer in range(1, self.num_layers + 1):
            width = self.channels * min(2**layer, 8)
            x = _conv(width, 4, f"model_{4 * layer - 1}", 1, self.dtype)(x)
            x = nn.leaky_relu(normalise(x, self.group_channels), 0.2)
            if layer < self.num_layers:
                x = blur_down(x)
        x = _conv(1, 4, f"model_{4 * self.num_layers + 2}", 1, self.dtype)(x)
        return x.astype(jnp.float32)


def unit_vectors(x: jax.Array) -> jax.Array:
    """v / (‖v‖ + 1e-7) along the last axis; the gradient at v = 0 is 0."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    # The gradient of the root at 0 is infinite, which gives NaN in the published code.
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return x / (norm + 1e-7)


class PatchSampler(nn.Module):
    """The published F: feature vectors at chosen positions, through one small MLP per map.

    Attributes:
      features: width of the output vectors.
      use_mlp: False selects and normalises without an MLP.
    """

    features: int = 256
    use_mlp: bool = True

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], ids: Sequence[jax.Array]) -> list[jax.Array]:
        """Samples feature maps.

        Args:
          maps: feature maps, `[B, h, w, C]` each.
          ids: positions row * w + column for each map, `[P]` each, the same for all images.

        Returns:
          One `[B, P, features]` (without MLP: `[B, P, C]`) per map, vectors of length 1.
        """
        vectors = []
        for n, (x, positions) in enumerate(zip(maps, ids, strict=True)):
            x = x.reshape(x.shape[0], -1, x.shape[-1])[:, positions]
            if self.use_mlp:
                x = nn.relu(nn.Dense(self.features, kernel_init=SMALL, name=f"mlp_{n}_0")(x))
                x = nn.Dense(self.features, kernel_init=SMALL, name=f"mlp_{n}_2")(x)
            vectors.append(unit_vectors(x))
        return vectors
