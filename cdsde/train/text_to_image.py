r"""The stages of a small text-to-image latent diffusion model.

    autoencoder  mean |x - D(z)| + β mean KL(q(z|x), N(0, 1)), z drawn from q
    latent       ε-matching of s E(x) at a random level, given one of the image's captions, which
                 is sometimes dropped for classifier-free guidance; trains text encoder and U-Net
                 together

s gives the latents of the training images a standard deviation of 1; it is stored with the
parameters of the second stage.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import to_float
from cdsde.data.inputs import open_split, reading, tokenizer_of, train_captions
from cdsde.diffusion import losses, schedules
from cdsde.diffusion.levels import draw_levels, uniform_shares
from cdsde.networks.stable_diffusion import small
from cdsde.train import augment
from cdsde.weights import resolve

SCALED_BY = 256  # training images that s is computed from


def autoencoder(config: ConfigDict) -> dict:
    """The fields of the autoencoder's `stages.Stage`, without its domains."""
    model, training = small.autoencoder(config), config_lib.stage_training(config, "autoencoder")

    def loss(params, batch, key):
        noise_key = jax.random.split(key)[1]
        x = to_float(batch["image"])
        q = model.apply(params, x, method="encode")
        z = q.mean + q.std * jax.random.normal(noise_key, q.mean.shape)
        distance = jnp.mean(jnp.abs(x - model.apply(params, z, method="decode")))
        kl = 0.5 * jnp.mean(q.mean**2 + q.std**2 - 1 - q.log_variance)
        return distance + training.kl * kl, {"distance": distance, "kl": kl}

    return {"init": functools.partial(small.init_autoencoder, config), "loss": loss}


def labels(config: ConfigDict) -> list[np.ndarray]:
    """Token ids of the training captions, int32 `[N, K, text_length]` for each domain.

    K is the largest number of captions of an image; those of the others repeat.
    """
    tokenize, parts = tokenizer_of(config), train_captions(config)
    count = max(len(texts) for part in parts for texts in part)
    cycled = [[texts[k % len(texts)] for texts in part for k in range(count)] for part in parts]
    return [tokenize(texts).reshape(-1, count, config.latent.text_length) for texts in cycled]


def latent(config: ConfigDict, workdir) -> dict:
    """The fields of the text-conditional network's `stages.Stage`, without its domains.

    It trains in the latent space of the autoencoder in `workdir`.

    Raises:
      ValueError: there is no trained autoencoder, or a training image has no caption.
    """
    vae_params, _ = resolve.load(config, workdir, "autoencoder")
    vae, unet, text = (f(config) for f in (small.autoencoder, small.unet, small.text_encoder))
    training = config_lib.stage_training(config, "latent")
    alpha_bar = jnp.asarray(schedules.scaled_linear().alpha_bar)
    no_caption = jnp.asarray(tokenizer_of(config)([""]))
    encode = functools.partial(vae.apply, vae_params, method="encode")

    def loss(params, batch, key):
        keys = jax.random.split(key, 5)
        factor = jax.lax.stop_gradient(params["factor"])
        x = augment.shift(keys[0], to_float(batch["image"]), training.shift)
        z = factor * encode(x).mean
        b = len(z)
        dropped = jax.random.bernoulli(keys[1], training.drop_text, (b, 1))
        captions = batch["label"]
        one = jax.random.randint(keys[4], (b,), 0, captions.shape[1])
        ids = jnp.where(dropped, no_caption, captions[jnp.arange(b), one])
        context = text.apply(params["text_encoder"], ids).hidden
        t = draw_levels(keys[2], uniform_shares(len(alpha_bar)), b)
        a = schedules.gather(alpha_bar, t)
        e = jax.random.normal(keys[3], z.shape)
        predicted = unet.apply(params["unet"], schedules.perturb(z, e, a), t, context)
        return losses.eps_matching(predicted, e, a, training.snr_clip or None), {}

    return {
        "init": functools.partial(small.init_latent, config, factor=_factor(config, encode)),
        "loss": loss,
        "labels": functools.partial(labels, config),
    }


def _factor(config: ConfigDict, encode) -> float:
    """1 / standard deviation of the latents of some training images."""
    images, names = [], config_lib.domains(config)
    for name in names:
        source = open_split(config, name, "train")
        for j in np.linspace(0, len(source) - 1, SCALED_BY // len(names)).astype(int):
            images.append(reading(config)(source[j]["image"]))
    x = to_float(np.stack(images))
    z = jax.lax.map(lambda part: encode(part).mean, x[:, None])
    return float(1 / np.std(np.asarray(z)))
