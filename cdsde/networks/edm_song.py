"""DDPM++ and NCSN++ (Song et al. 2021), as EDM has them: see `edm_blocks`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cdsde.networks import blocks, edm_blocks, fir
from cdsde.networks.edm_blocks import GROUP_CHANNELS, MEAN, SONG_EPS, resampled


class Fourier(nn.Module):
    """The angles of random frequencies, which are stored with the weights and never trained."""

    width: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """`[B]` -> `[B, width / 2]`."""
        init = nn.initializers.normal(16.0)
        freqs = jax.lax.stop_gradient(self.param("freqs", init, (self.width // 2,), jnp.float32))
        return t[:, None] * (np.float32(2 * np.pi) * freqs)[None, :]


class SongUNet(edm_blocks.Base):
    """DDPM++ and NCSN++ (Song et al. 2021), as EDM has them.

    `embedding` is "positional" or "fourier"; `encoder` and `decoder` are "standard" or "skip", the
    encoder also "residual": how the noisy image reaches the levels and the levels reach the output;
    `resample_filter` are the taps of the resampling.
    """

    embedding: str = "positional"
    channel_mult_noise: int = 1
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: Sequence[float] = MEAN

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | float,
        y: jax.Array | None = None,
        augment: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network.

        Args:
          x: `[B, H, W, C]`, the network's own input `c_in * x`.
          t: scalar or `[B]`, the network's own time input `c_noise`.
          y: `[B]` integer class labels; None means that no label is given, not class 0.
          augment: `[B, augment_dim]` labels of the training's augmentation; None means zeros, an
            image that was not augmented.

        Returns:
          `[B, H, W, out_channels]` float32.

        Raises:
          ValueError: shapes or widths that do not fit, labels for a network that has none.
        """
        for field, choices in (
            ("embedding", ("positional", "fourier")),
            ("encoder", ("standard", "skip", "residual")),
            ("decoder", ("standard", "skip")),
        ):
            if (value := getattr(self, field)) not in choices:
                raise ValueError(f"{field} is '{value}': choose one of {', '.join(choices)}.")
        blocks.check_image(x, len(self.channel_mult))
        emb = self._embed(t, y, augment, x.shape[0])
        h, skips = self._encode(x, emb)
        return self._decode(h, skips, emb)

    def _embed(self, t, y, augment, batch):
        t, width = blocks.batch_of_indices(t, batch), self.channels * self.channel_mult_noise
        if self.embedding == "fourier":
            angles = Fourier(width, name="map_noise")(t)
        else:
            angles = t[:, None] * edm_blocks.frequencies(width, endpoint=True)[None, :]
        emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        labels = self.labels(y, batch) * np.sqrt(np.float32(self.num_classes))
        if self.num_classes:
            emb = emb + blocks.dense(labels, width, name="map_label")
        emb = self.augmented(emb, augment)
        for name in ("map_layer0", "map_layer1"):
            emb = nn.silu(blocks.dense(emb, self.channels * self.channel_mult_emb, name=name))
        return emb

    def _block(self, h, emb, features, name, attention=False, resample=None):
        taps = self.resample_filter
        cls = edm_blocks.Block(
            features, resample, taps, int(attention), True, self.dtype, name=name
        )
        return cls(h, emb)

    def _encode(self, x, emb):
        conv, taps = blocks.conv, tuple(self.resample_filter)
        h, aux, skips = x, x, []
        for level, (size, width, attention) in enumerate(self.levels()):
            if level == 0:
                h = conv(h, self.channels, name=f"enc.{size}_conv", dtype=self.dtype)
            else:
                h = self._block(h, emb, h.shape[-1], f"enc.{size}_down", resample="down")
                name = f"enc.{size}_aux_{self.encoder}"
                if self.encoder == "skip":
                    aux = resampled(aux, "down", taps)
                    h = h + conv(aux, h.shape[-1], kernel=1, name=name, dtype=self.dtype)
                elif self.encoder == "residual":
                    pad = 1 + (len(taps) - 1) // 2
                    aux = conv(
                        aux,
                        h.shape[-1],
                        padding=((pad, pad), (pad, pad)),
                        name=name,
                        dtype=self.dtype,
                    )
                    # Without padding, for the convolution has made room.
                    aux = fir.filtered(aux, taps[::-1], (0, 0), stride=2)
                    h = aux = (h + aux) / np.sqrt(2).astype(h.dtype)
            skips.append(h)
            for i in range(self.num_blocks):
                h = self._block(h, emb, width, f"enc.{size}_block{i}", attention)
                skips.append(h)
        return h, skips

    def _decode(self, h, skips, emb):
        levels, aux = self.levels(), None
        for level, (size, width, attention) in reversed(list(enumerate(levels))):
            name = f"dec.{size}"
            if level == len(levels) - 1:
                h = self._block(h, emb, h.shape[-1], f"{name}_in0", True)
                h = self._block(h, emb, h.shape[-1], f"{name}_in1")
            else:
                h = self._block(h, emb, h.shape[-1], f"{name}_up", resample="up")
            for i in range(self.num_blocks + 1):
                h = blocks.joined(h, skips.pop())
                last = i == self.num_blocks
                h = self._block(h, emb, width, f"{name}_block{i}", attention and last)
            if self.decoder == "skip" or level == 0:
                norm = blocks.GroupNorm(SONG_EPS, True, GROUP_CHANNELS, name=f"{name}_aux_norm")
                image = blocks.conv(norm(h), self.out_channels, name=f"{name}_aux_conv", zero=True)
                if aux is not None:
                    image = image + resampled(aux, "up", self.resample_filter)
                aux = image
        return aux
