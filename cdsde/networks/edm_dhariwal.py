"""ADM (Dhariwal and Nichol 2021), as EDM has it: see `edm_blocks`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.networks import blocks, edm_blocks
from cdsde.networks.edm_blocks import DHARIWAL_EPS, GROUP_CHANNELS, MEAN

HEAD_CHANNELS = 64


class DhariwalUNet(edm_blocks.Base):
    """ADM (Dhariwal and Nichol 2021), as EDM has it.

    A level has one attention head for each 64 channels, so narrower levels have no attention.
    """

    channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    num_blocks: int = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | float,
        y: jax.Array | None = None,
        augment: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network; arguments, result and errors are those of `SongUNet`."""
        blocks.check_image(x, len(self.channel_mult))
        emb = self._embed(t, y, augment, x.shape[0])
        levels, h, skips = self.levels(), x, []
        for level, (size, width, attention) in enumerate(levels):
            name = f"enc.{size}"
            if level == 0:
                h = blocks.conv(h, width, name=f"{name}_conv", dtype=self.dtype)
            else:
                h = self._block(h, emb, h.shape[-1], f"{name}_down", resample="down")
            skips.append(h)
            for i in range(self.num_blocks):
                h = self._block(h, emb, width, f"{name}_block{i}", attention)
                skips.append(h)
        for level, (size, width, attention) in reversed(list(enumerate(levels))):
            name = f"dec.{size}"
            if level == len(levels) - 1:
                h = self._block(h, emb, h.shape[-1], f"{name}_in0", True)
                h = self._block(h, emb, h.shape[-1], f"{name}_in1")
            else:
                h = self._block(h, emb, h.shape[-1], f"{name}_up", resample="up")
            for i in range(self.num_blocks + 1):
                h = blocks.joined(h, skips.pop())
                h = self._block(h, emb, width, f"{name}_block{i}", attention)
        h = blocks.GroupNorm(DHARIWAL_EPS, True, GROUP_CHANNELS, name="out_norm")(h)
        return blocks.conv(h, self.out_channels, name="out_conv", zero=True)

    def _embed(self, t, y, augment, batch):
        t, width = blocks.batch_of_indices(t, batch), self.channels * self.channel_mult_emb
        angles = t[:, None] * edm_blocks.frequencies(self.channels, endpoint=False)[None, :]
        emb = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        emb = self.augmented(emb, augment)
        emb = nn.silu(blocks.dense(emb, width, name="map_layer0"))
        emb = blocks.dense(emb, width, name="map_layer1")
        labels = self.labels(y, batch)
        if self.num_classes:
            emb = emb + nn.Dense(width, use_bias=False, name="map_label")(labels)
        return nn.silu(emb)

    def _block(self, h, emb, features, name, attention=False, resample=None):
        heads = features // HEAD_CHANNELS if attention else 0
        return edm_blocks.Block(features, resample, MEAN, heads, False, self.dtype, name=name)(
            h, emb
        )
