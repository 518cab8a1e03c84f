"""The first two convolutions of AdaIN's normalised VGG19 (Huang and Belongie 2017).

Keys `0.weight` ... `2.bias` of their `vgg_normalised.pth`: a 1x1 convolution of the colours, and a
3x3 one with mirrored borders. SDDM's energy compares its 64 features.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks.features.layers import Conv


class FirstLayers(nn.Module):
    """`[B, H, W, 3]` in [-1, 1] -> `[B, H, W, 64]`, at full resolution, at least 0."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The features of images, of any size of at least 2."""
        x = Conv(3, (1, 1), name="layer_0")(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return nn.relu(Conv(64, (3, 3), padding="VALID", name="layer_2")(x))
