"""The contrastive encoder: the encoder half of the ADM U-Net with SimCLR's projection head."""

from __future__ import annotations

import flax.linen as nn
import jax

from cdsde.networks.adm import ADMEncoder


class ContrastiveEncoder(nn.Module):
    """Image and noise level → vectors or maps that the contrastive loss and energy compare.

    Attributes:
      backbone: the encoder half; its `out_channels` is the width of the pooled vector.
      embed_dim: output width of the projection head (linear, SiLU, linear; Chen et al. 2020, §4.2).
    """

    backbone: ADMEncoder
    embed_dim: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, space: str = "embedding", train: bool = False):
        """Encodes perturbed images.

        Args:
          x: `[B, H, W, 3]` perturbed images, nominally in [-1, 1].
          t: raw index 0 … T-1 as float, scalar or `[B]`.
          space: "embedding", "hidden" or "features", see below.
          train: apply dropout, with the key of the stream "dropout".

        Returns:
          float32: `[B, embed_dim]` for "embedding", `[B, hidden]` for "hidden" (before the head),
          `[B, h, w, C]` for "features" (the last feature map; the head is not computed). With the
          backbone's `pool="none"`, embedding and hidden are maps too, `[B, h, w, ...]`.
        """
        hidden, features = self.backbone(x, t, train=train, head=space != "features")
        if space == "features":
            return features
        if space == "hidden":
            return hidden
        z = nn.silu(nn.Dense(self.backbone.out_channels, name="head_0")(hidden))
        return nn.Dense(self.embed_dim, name="head_2")(z)
