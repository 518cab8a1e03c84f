"""The Inception of FID: InceptionV3 of 2015 as ported by pytorch-fid, with whose weights it works.

It differs from later InceptionV3s: average pooling does not count its padding, the last block pools
by maximum, and there are 1008 classes. Submodules have the published names
(`Mixed_5b/branch5x5_1/conv` <-> `Mixed_5b.branch5x5_1.conv`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks.features.layers import BatchNorm, Conv, Dense, check_images, spatial_mean

SIDE = 299
CLASSES = 1008
_average = functools.partial(
    nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False
)
_maximum = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
_halve = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID")


def preprocess(images: jax.Array) -> jax.Array:
    """Input of the network from images.

    Args:
      images: `[B, H, W, 3]` float in [0, 1], any size.

    Returns:
      `[B, 299, 299, 3]` in [-1, 1], resized bilinearly without corner alignment or antialiasing.
    """
    images = check_images(images, "Inception")
    shape = (images.shape[0], SIDE, SIDE, 3)
    resized = jax.image.resize(
        images, shape, "linear", antialias=False, precision=jax.lax.Precision.HIGHEST
    )
    return 2 * resized - 1


class InceptionV3(nn.Module):
    """The Inception of FID."""

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Features of images.

        Args:
          images: `[B, H, W, 3]` float in [0, 1].

        Returns:
          The output blocks of pytorch-fid by their number of channels: maps "64" `[B, 73, 73, 64]`,
          "192" `[B, 35, 35, 192]`, "768" `[B, 17, 17, 768]` and their spatial means "64_mean"
          `[B, 64]`, "192_mean", "768_mean"; the pool features "2048" `[B, 2048]`; "logits"
          `[B, 1008]`.

        Raises:
          ValueError: `images` has another shape or an integer dtype.
        """
        x = preprocess(images)
        x = _Conv(32, strides=2, padding="VALID", name="Conv2d_1a_3x3")(x)
        x = _Conv(32, padding="VALID", name="Conv2d_2a_3x3")(x)
        x = _Conv(64, name="Conv2d_2b_3x3")(x)
        maps = {"64": (x := _halve(x))}
        x = _Conv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = _Conv(192, padding="VALID", name="Conv2d_4a_3x3")(x)
        maps["192"] = x = _halve(x)
        x = _InceptionA(32, name="Mixed_5b")(x)
        x = _InceptionA(64, name="Mixed_5c")(x)
        x = _InceptionA(64, name="Mixed_5d")(x)
        x = _InceptionB(name="Mixed_6a")(x)
        x = _InceptionC(128, name="Mixed_6b")(x)
        x = _InceptionC(160, name="Mixed_6c")(x)
        x = _InceptionC(160, name="Mixed_6d")(x)
        maps["768"] = x = _InceptionC(192, name="Mixed_6e")(x)
        x = _InceptionD(name="Mixed_7a")(x)
        x = _InceptionE(_average, name="Mixed_7b")(x)
        x = _InceptionE(_maximum, name="Mixed_7c")(x)
        pooled = spatial_mean(x)
        logits = Dense(CLASSES, name="fc")(pooled)
        means = {f"{name}_mean": spatial_mean(value) for name, value in maps.items()}
        return {**maps, **means, "2048": pooled, "logits": logits}


class _Conv(nn.Module):
    features: int
    kernel: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        strides = (self.strides, self.strides)
        conv = Conv(self.features, self.kernel, strides, self.padding, use_bias=False, name="conv")
        return nn.relu(BatchNorm(name="bn")(conv(x)))


class _InceptionA(nn.Module):
    pool_features: int

    @nn.compact
    def __call__(self, x):
        one = _Conv(64, (1, 1), name="branch1x1")(x)
        five = _Conv(48, (1, 1), name="branch5x5_1")(x)
        five = _Conv(64, (5, 5), name="branch5x5_2")(five)
        double = _Conv(64, (1, 1), name="branch3x3dbl_1")(x)
        double = _Conv(96, name="branch3x3dbl_2")(double)
        double = _Conv(96, name="branch3x3dbl_3")(double)
        pool = _Conv(self.pool_features, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([one, five, double, pool], axis=-1)


class _InceptionB(nn.Module):
    @nn.compact
    def __call__(self, x):
        three = _Conv(384, strides=2, padding="VALID", name="branch3x3")(x)
        double = _Conv(64, (1, 1), name="branch3x3dbl_1")(x)
        double = _Conv(96, name="branch3x3dbl_2")(double)
        double = _Conv(96, strides=2, padding="VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _halve(x)], axis=-1)


class _InceptionC(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        one = _Conv(192, (1, 1), name="branch1x1")(x)
        seven = _Conv(self.width, (1, 1), name="branch7x7_1")(x)
        seven = _Conv(self.width, (1, 7), name="branch7x7_2")(seven)
        seven = _Conv(192, (7, 1), name="branch7x7_3")(seven)
        double = _Conv(self.width, (1, 1), name="branch7x7dbl_1")(x)
        double = _Conv(self.width, (7, 1), name="branch7x7dbl_2")(double)
        double = _Conv(self.width, (1, 7), name="branch7x7dbl_3")(double)
        double = _Conv(self.width, (7, 1), name="branch7x7dbl_4")(double)
        double = _Conv(192, (1, 7), name="branch7x7dbl_5")(double)
        pool = _Conv(192, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class _InceptionD(nn.Module):
    @nn.compact
    def __call__(self, x):
        three = _Conv(192, (1, 1), name="branch3x3_1")(x)
        three = _Conv(320, strides=2, padding="VALID", name="branch3x3_2")(three)
        seven = _Conv(192, (1, 1), name="branch7x7x3_1")(x)
        seven = _Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = _Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = _Conv(192, strides=2, padding="VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _halve(x)], axis=-1)


class _InceptionE(nn.Module):
    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        one = _Conv(320, (1, 1), name="branch1x1")(x)
        three = _Conv(384, (1, 1), name="branch3x3_1")(x)
        across = _Conv(384, (1, 3), name="branch3x3_2a")(three)
        along = _Conv(384, (3, 1), name="branch3x3_2b")(three)
        double = _Conv(448, (1, 1), name="branch3x3dbl_1")(x)
        double = _Conv(384, name="branch3x3dbl_2")(double)
        double_across = _Conv(384, (1, 3), name="branch3x3dbl_3a")(double)
        double_along = _Conv(384, (3, 1), name="branch3x3dbl_3b")(double)
        pool = _Conv(192, (1, 1), name="branch_pool")(self.pool(x))
        branches = [one, across, along, double_across, double_along, pool]
        return jnp.concatenate(branches, axis=-1)
