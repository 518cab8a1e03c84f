"""DINO's ViT-B/8 (Caron et al. 2021): the keys of its last block describe an image's structure.

The weights are those of facebookresearch/dino; submodules have their names (`blocks.0.attn.qkv`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks.features.layers import Conv, Dense, check_images

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class DINO(nn.Module):
    """A vision transformer; the defaults are ViT-B/8 for 224².

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      heads: number of attention heads.
      patch: side of a patch in pixels.
      side: side to which images are resized.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 8
    side: int = 224

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Features of images.

        Args:
          images: `[B, H, W, 3]` float in [0, 1]; stretched to `side`, bilinear with antialiasing.

        Returns:
          "keys" `[B, 1 + patches, width]`, the keys of the last block with concatenated heads,
          class token first; "class" `[B, width]`, the class token after the last norm.

        Raises:
          ValueError: `images` has another shape or an integer dtype.
        """
        images = check_images(images, "DINO")
        b, shape = len(images), (len(images), self.side, self.side, 3)
        x = jax.image.resize(images, shape, "linear", precision=jax.lax.Precision.HIGHEST)
        x = (x - MEAN.reshape(1, 1, 1, 3)) / STD.reshape(1, 1, 1, 3)
        size = (self.patch, self.patch)
        x = Conv(self.width, size, size, "VALID", name="patch_embed.proj")(x)
        x = x.reshape(b, -1, self.width)
        init = nn.initializers.normal(0.02)
        token = self.param("cls_token", init, (1, 1, self.width))
        position = self.param("pos_embed", init, (1, 1 + x.shape[1], self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)), x], axis=1) + position
        for n in range(self.depth):
            x, keys = self._block(x, f"blocks.{n}")
        return {"keys": keys, "class": _norm("norm")(x)[:, 0]}

    def _block(self, x: jax.Array, name: str):
        """Residual attention and MLP, each after a norm; returns the output and the keys."""
        width = self.width
        h = Dense(3 * width, name=f"{name}.attn.qkv")(_norm(f"{name}.norm1")(x))
        q, k, v = jnp.split(h, 3, axis=-1)
        heads = (*x.shape[:2], self.heads, width // self.heads)
        split = [part.reshape(heads) for part in (q, k, v)]
        h = nn.dot_product_attention(*split, precision=jax.lax.Precision.HIGHEST)
        x = x + Dense(width, name=f"{name}.attn.proj")(h.reshape(x.shape))
        h = Dense(4 * width, name=f"{name}.mlp.fc1")(_norm(f"{name}.norm2")(x))
        return x + Dense(width, name=f"{name}.mlp.fc2")(nn.gelu(h, approximate=False)), k


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
