r"""The stages of a small latent diffusion model with text: an autoencoder, then what works in it.

    autoencoder  mean |x - D(z)| + β mean KL(q(z|x), N(0, 1)), z drawn from q
    latent       ε-matching of s·E(x) at a random level, given the caption (sometimes: none, so that
                 classifier-free guidance can be had); text encoder and U-Net together

s makes the latents of the training images vary by 1; it is a number of the second network.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import open_domain, resize
from cdsde.data.inputs import tokenizer_of, train_captions
from cdsde.diffusion import losses, schedules
from cdsde.diffusion.levels import draw_levels, uniform
from cdsde.editing import ladders
from cdsde.networks.stable_diffusion import small
from cdsde.weights import resolve

SCALED_BY = 256  # images from which s is measured


def autoencoder_loss(config: ConfigDict, images):
    """The loss of the autoencoder; `images(batch, key)` gives floats in [-1, 1]."""
    model, training = small.autoencoder(config), config_lib.stage_training(config, "autoencoder")

    def loss(params, batch, key):
        keys = jax.random.split(key)
        x = images(batch, keys[0])
        q = model.apply(params, x, method="encode")
        z = q.mean + q.std * jax.random.normal(keys[1], q.mean.shape)
        far = jnp.mean(jnp.abs(x - model.apply(params, z, method="decode")))
        kl = 0.5 * jnp.mean(q.mean**2 + q.std**2 - 1 - q.log_variance)
        return far + training.kl * kl, {"distance": far, "kl": kl}

    return loss


def labels(config: ConfigDict) -> list[np.ndarray]:
    """Token ids of the training captions, int32 `[N, text_length]` a domain."""
    tokenize = tokenizer_of(config)
    return [tokenize(part) for part in train_captions(config)]


def latent_loss(config: ConfigDict, workdir, images):
    """`(loss, factor)` of the text-conditional network in the latents of a trained autoencoder.

    Raises:
      ValueError: there is no trained autoencoder, or a training image without a caption.
    """
    vae_params, _ = resolve.load(config, workdir, "autoencoder")
    vae, unet, text = (f(config) for f in (small.autoencoder, small.unet, small.text_encoder))
    training = config_lib.stage_training(config, "latent")
    alpha_bar = jnp.asarray(ladders.scaled_linear().alpha_bar)
    nothing = jnp.asarray(tokenizer_of(config)([""]))
    encode = functools.partial(vae.apply, vae_params, method="encode")

    def loss(params, batch, key):
        keys = jax.random.split(key, 4)
        factor = jax.lax.stop_gradient(params["factor"])
        z = factor * encode(images(batch, keys[0])).mean
        b = len(z)
        dropped = jax.random.bernoulli(keys[1], training.drop_text, (b, 1))
        ids = jnp.where(dropped, nothing, batch["label"])
        context = text.apply(params["text_encoder"], ids).hidden
        t = draw_levels(keys[2], uniform(len(alpha_bar)), b)
        a = schedules.gather(alpha_bar, t)
        e = jax.random.normal(keys[3], z.shape)
        predicted = unet.apply(params["unet"], schedules.perturb(z, e, a), t, context)
        return losses.eps_matching(predicted, e, a, training.snr_clip or None), {}

    return loss, _factor(config, encode)


def _factor(config: ConfigDict, encode) -> float:
    """1 / deviation of the latents of some training images."""
    d, found = config.data, []
    names = config_lib.domains(config)
    for name in names:
        source = open_domain(d.root, name, "train", data_dir=d.data_dir)
        for j in np.linspace(0, len(source) - 1, SCALED_BY // len(names)).astype(int):
            found.append(resize(source[j]["image"], d.image_size, filter=d.filter, fit=d.fit))
    x = np.stack(found).astype(np.float32) / 127.5 - 1
    z = jax.lax.map(lambda part: encode(part).mean, x[:, None])
    return float(1 / np.std(np.asarray(z)))
