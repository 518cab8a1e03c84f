"""LPIPS v0.1 (Zhang et al. 2018) with AlexNet, VGG16 and SqueezeNet 1.1: a learned distance.

The backbones are torchvision's; the linear heads are the published ones, shipped in
`cdsde/assets/features/` (BSD-2-Clause). Submodules have the names of the `lpips` package
(`slice2_3/kernel` <-> `slice2.3.weight`, `lin0_model_1/kernel` <-> `lin0.model.1.weight`).
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks.features.layers import Conv, check_images

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
EPS = 1e-10


class Layer(NamedTuple):
    """A convolution with ReLU; `index` is its index in torchvision's `features`."""

    index: int
    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Fire(NamedTuple):
    """SqueezeNet's module, a 1x1 convolution, then one of 1x1 beside one of 3x3; all with ReLU.

    `index` is its index in torchvision's `features`; `expand` counts the channels of each of both.
    """

    index: int
    squeeze: int
    expand: int


class _Fire(nn.Module):
    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Conv(self.squeeze, (1, 1), name="squeeze")(x))
        one = Conv(self.expand, (1, 1), name="expand1x1")(x)
        three = Conv(self.expand, (3, 3), name="expand3x3")(x)
        return nn.relu(jnp.concatenate([one, three], axis=-1))


class _LPIPS(nn.Module):
    """The distance with a backbone that subclasses define.

    Attributes:
      title: name of the backbone.
      pools: window of the max pooling (stride 2) before each slice, 0 for none.
      ceil: whether the poolings have a last window that the image fills in part.
      slices: the convolutions up to each output.
      least: the shortest side that leaves at least one position after all poolings.
    """

    title: ClassVar[str]
    pools: ClassVar[tuple[int, ...]]
    ceil: ClassVar[bool] = False
    slices: ClassVar[tuple[tuple[Layer | Fire, ...], ...]]
    least: ClassVar[int]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distance of each pair.

        Args:
          a, b: `[B, H, W, 3]` float in [-1, 1], of the same shape.

        Returns:
          `[B]` float32, the sum of `layers`.

        Raises:
          ValueError: shapes differ or do not fit, an integer dtype, or too small images.
        """
        return jnp.sum(self.layers(a, b), axis=1)

    @nn.compact
    def layers(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distance of each pair by slice, `[B, slices]`; arguments and errors as in `__call__`."""
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(f"LPIPS compares images of one shape, not {a.shape} with {b.shape}.")
        both = [check_images(x, f"LPIPS over {self.title}", self.least) for x in (a, b)]
        x = (jnp.concatenate(both) - SHIFT.reshape(1, 1, 1, 3)) / SCALE.reshape(1, 1, 1, 3)
        distances = []
        for number, (pool, convolutions) in enumerate(zip(self.pools, self.slices, strict=True)):
            x = _pooled(x, pool, self.ceil) if pool else x
            for layer in convolutions:
                x = _convolved(x, layer, f"slice{number + 1}_{layer.index}")
            norm = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
            one, other = jnp.split(x / (norm + EPS), 2)
            head = Conv(1, (1, 1), use_bias=False, name=f"lin{number}_model_1")
            distances.append(jnp.mean(head((one - other) ** 2), axis=(1, 2, 3)))
        return jnp.stack(distances, axis=1)


def _pooled(x: jax.Array, window: int, ceil: bool) -> jax.Array:
    """Maxima of windows two places apart; `ceil`: also of one that the map fills in part."""
    rest = [((n - window) % 2) * ceil for n in x.shape[1:3]]
    return nn.max_pool(x, (window, window), (2, 2), [(0, n) for n in rest])


def _convolved(x: jax.Array, layer: Layer | Fire, name: str) -> jax.Array:
    """A layer with its ReLU; called within the module that owns it."""
    if isinstance(layer, Fire):
        return _Fire(layer.squeeze, layer.expand, name=name)(x)
    kernel, stride = 2 * (layer.kernel,), 2 * (layer.stride,)
    padding = 2 * ((layer.padding, layer.padding),)
    return nn.relu(Conv(layer.features, kernel, stride, padding, name=name)(x))


class LPIPSAlex(_LPIPS):
    """LPIPS with AlexNet."""

    title = "AlexNet"
    pools = (0, 3, 3, 0, 0)
    slices = (
        (Layer(0, 64, 11, 4, 2),),
        (Layer(3, 192, 5, 1, 2),),
        (Layer(6, 384),),
        (Layer(8, 256),),
        (Layer(10, 256),),
    )
    least = 31


class LPIPSVGG(_LPIPS):
    """LPIPS with VGG16."""

    title = "VGG16"
    pools = (0, 2, 2, 2, 2)
    slices = (
        (Layer(0, 64), Layer(2, 64)),
        (Layer(5, 128), Layer(7, 128)),
        (Layer(10, 256), Layer(12, 256), Layer(14, 256)),
        (Layer(17, 512), Layer(19, 512), Layer(21, 512)),
        (Layer(24, 512), Layer(26, 512), Layer(28, 512)),
    )
    least = 16


class LPIPSSqueeze(_LPIPS):
    """LPIPS with SqueezeNet 1.1."""

    title = "SqueezeNet"
    pools = (0, 3, 3, 3, 0, 0, 0)
    ceil = True
    slices = (
        (Layer(0, 64, stride=2, padding=0),),
        (Fire(3, 16, 64), Fire(4, 16, 64)),
        (Fire(6, 32, 128), Fire(7, 32, 128)),
        (Fire(9, 48, 192),),
        (Fire(10, 48, 192),),
        (Fire(11, 64, 256),),
        (Fire(12, 64, 256),),
    )
    least = 17
