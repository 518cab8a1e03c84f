"""Networks of the latent diffusion models that this package trains, from the config.

They are small versions of SD-1.x's. `weights.diffusers.save` writes them in the same layout, so
that editing and other programs read them like any other model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdsde.config import fitting
from cdsde.networks.stable_diffusion.clip import CLIPTextModel, TextTransformer
from cdsde.networks.stable_diffusion.unet import UNet
from cdsde.networks.stable_diffusion.vae import AutoencoderKL


def autoencoder(config: ConfigDict) -> AutoencoderKL:
    """The autoencoder of `config.autoencoder`."""
    fitting.check_latent(config)
    net = config.autoencoder
    return AutoencoderKL(
        widths=tuple(net.widths),
        blocks=1,
        latent_channels=net.channels,
        groups=fitting.AUTOENCODER_GROUPS,
        dtype=jnp.dtype(config.dtype),
    )


def unet(config: ConfigDict) -> UNet:
    """The U-Net of `config.latent`."""
    fitting.check_latent(config)
    net = config.latent
    return UNet(
        widths=tuple(net.widths),
        attention=(True,) * len(net.widths),
        blocks=1,
        heads=(net.heads,) * len(net.widths),
        groups=fitting.LATENT_GROUPS,
        out_channels=config.autoencoder.channels,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def text_encoder(config: ConfigDict) -> CLIPTextModel:
    """The text encoder of `config.latent`; the end token is the largest id."""
    net = config.latent
    return CLIPTextModel(
        TextTransformer(
            vocabulary=net.vocabulary,
            positions=net.text_length,
            width=net.text_width,
            depth=net.text_depth,
            heads=fitting.TEXT_HEADS,
            mlp=4 * net.text_width,
            end=net.vocabulary - 1,
            dtype=jnp.dtype(config.dtype),
        )
    )


def latent_side(config: ConfigDict) -> int:
    """Side of an image's latents, in positions."""
    return config.data.image_size // 2 ** (len(config.autoencoder.widths) - 1)


def init_autoencoder(config: ConfigDict, key):
    """Parameters of the autoencoder."""
    size = config.data.image_size
    return _parameters(autoencoder(config), key, jnp.zeros((1, size, size, 3)))


def init_latent(config: ConfigDict, key, factor=1.0):
    """Initial `{"unet", "text_encoder", "factor"}`; `factor` scales latents and is not trained.

    The U-Net's last convolution starts at 0.
    """
    keys = jax.random.split(key)
    net, side = config.latent, latent_side(config)
    z = jnp.zeros((1, side, side, config.autoencoder.channels))
    text = jnp.zeros((1, net.text_length, net.text_width))
    params = _parameters(unet(config), keys[0], z, jnp.zeros(1), text)
    last = params["params"]["conv_out"]
    params["params"]["conv_out"] = jax.tree.map(jnp.zeros_like, last)
    ids = jnp.zeros((1, net.text_length), int)
    return {
        "unet": params,
        "text_encoder": text_encoder(config).init(keys[1], ids),
        "factor": jnp.asarray(factor, jnp.float32),
    }


def _parameters(module, key, *inputs):
    """Initial parameters, without the collections that the module sows."""
    return {"params": module.init(key, *inputs)["params"]}
