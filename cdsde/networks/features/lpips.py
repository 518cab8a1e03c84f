"""LPIPS v0.1 (Zhang et al. 2018) with AlexNet and VGG16: a learned distance of two images.

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


class _LPIPS(nn.Module):
    """The distance with a backbone that subclasses define.

    Attributes:
      title: name of the backbone.
      pools: window of the max pooling (stride 2) before each slice, 0 for none.
      slices: the convolutions up to each of the five outputs.
      least: the shortest side that leaves at least one position after all poolings.
    """

    title: ClassVar[str]
    pools: ClassVar[tuple[int, ...]]
    slices: ClassVar[tuple[tuple[Layer, ...], ...]]
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
        """Distance of each pair by layer, `[B, 5]`; arguments and errors as in `__call__`."""
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(f"LPIPS compares images of one shape, not {a.shape} with {b.shape}.")
        both = [check_images(x, f"LPIPS over {self.title}", self.least) for x in (a, b)]
        x = (jnp.concatenate(both) - SHIFT.reshape(1, 1, 1, 3)) / SCALE.reshape(1, 1, 1, 3)
        distances = []
        for number, (pool, convolutions) in enumerate(zip(self.pools, self.slices, strict=True)):
            x = nn.max_pool(x, (pool, pool), (2, 2)) if pool else x
            for layer in convolutions:
                x = nn.relu(
                    Conv(
                        layer.features,
                        (layer.kernel, layer.kernel),
                        (layer.stride, layer.stride),
                        2 * ((layer.padding, layer.padding),),
                        name=f"slice{number + 1}_{layer.index}",
                    )(x)
                )
            norm = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
            one, other = jnp.split(x / (norm + EPS), 2)
            head = Conv(1, (1, 1), use_bias=False, name=f"lin{number}_model_1")
            distances.append(jnp.mean(head((one - other) ** 2), axis=(1, 2, 3)))
        return jnp.stack(distances, axis=1)


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
