r"""The training stages: the data and the loss of each network.

    score         ε-matching on the target domain only
    source_score  the same on the source domain, for methods that go up with its network
    encoder       NT-Xent on all domains: the pair is (√ᾱ x + √(1-ᾱ) ε1, √ᾱ φ(x) + √(1-ᾱ) ε2),
                  φ the low-pass, or another view (views.py)
    classifier    cross-entropy of the domain of √ᾱ x + √(1-ᾱ) ε
    cut, fastcut  cut.py
    autoencoder, latent  text_to_image.py

A stage is `init(key) -> params` and `loss(params, batch, key) -> (scalar, metrics)`; GANs define a
step in place of the loss. Optimiser, EMA, sharding, checkpoints and logging are in state.py and
loop.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import to_float
from cdsde.diffusion import energies, losses, schedules
from cdsde.diffusion.levels import draw_levels, log_normal_shares, uniform_shares
from cdsde.networks import build
from cdsde.train import cut, state, text_to_image, views


class Stage(NamedTuple):
    """A training stage.

    Attributes:
      domains: the domains whose images it reads, in the order of the batch's `domain` numbers.
      init: `key -> params`.
      loss: `(params, batch, key) -> (scalar, {name: scalar})`; batch has `image` uint8
        `[B, H, W, 3]` and `domain` int32 `[B]`.
      labels: `() -> [token ids int32 [N, K, L], ...]` of K captions an image, one array per domain;
        the batch then has `label` int32 `[B, K, L]`.
      images: images per example: 2 for GANs, one per domain.
      make_step: `(tx, gather) -> step(state, batch)`, in place of a loss.
      optimiser: `tx -> tx`, applied to the configured optimiser.
      averaged: `params -> part`, the part that EMA follows and sampling uses.
      with_averaged: `(params, part) -> params`, with that part replaced.
    """

    domains: tuple[str, ...]
    init: Callable
    loss: Callable | None = None
    labels: Callable | None = None
    images: int = 1
    make_step: Callable | None = None
    optimiser: Callable = lambda tx: tx
    averaged: Callable = lambda params: params
    with_averaged: Callable = lambda params, part: part


def level_shares(schedule: schedules.Schedule, training: ConfigDict) -> np.ndarray:
    """Probability of each noise level in ε-matching, `[T]`."""
    if training.levels == "index":
        return uniform_shares(schedule.num_steps)
    return log_normal_shares(schedule, training.log_snr_mean, training.log_snr_std)


def score(config: ConfigDict, domains: tuple[str, ...]) -> Stage:
    """The score network's stage: ε-matching on its domains (losses.eps_matching).

    A network with `score.learn_sigma` learns its variance, too (losses.variance_bound).
    """
    model = build.score_model(config)
    schedule = build.schedule_of(config)
    training = config_lib.stage_training(config, "score")
    shares = level_shares(schedule, training)
    dropout, learns_variance = config.score.dropout > 0, config.score.learn_sigma

    def loss(params, batch, key):
        keys = jax.random.split(key, 4)
        x0 = to_float(batch["image"])
        i = draw_levels(keys[1], shares, x0.shape[0])
        e = jax.random.normal(keys[2], x0.shape)
        alpha_bar = schedules.gather(schedule.alpha_bar, i)
        rngs = {"dropout": keys[3]} if dropout else None
        y, more = schedules.perturb(x0, e, alpha_bar), {"variance": True} if learns_variance else {}
        prediction = model.apply(params, y, i, train=True, rngs=rngs, **more)
        if not learns_variance:
            return losses.eps_matching(prediction, e, alpha_bar, training.snr_clip or None), {}
        prediction, v = prediction
        matching = losses.eps_matching(prediction, e, alpha_bar, training.snr_clip or None)
        bound = losses.variance_bound(v, prediction, e, x0, i, schedule)
        # The share of the bound is that of Nichol & Dhariwal 2021, equation 16, and their code.
        return matching + schedule.num_steps / 1000 * bound, {"bound": bound}

    return Stage(domains, model.init, loss)


def _check_levels(config: ConfigDict, training: ConfigDict, name: str) -> None:
    """Raises a ValueError where a guide would be trained on levels that do not exist."""
    if training.max_index > config.sde.num_steps:
        raise ValueError(
            f"config.train.{name}.max_index is {training.max_index}, and there are "
            f"{config.sde.num_steps} noise levels (config.sde.num_steps); lower it"
        )


def encoder(config: ConfigDict) -> Stage:
    """The encoder's stage: NT-Xent of an image and its second view (views.py).

    The views have separate noise at a shared t; with `clean` the second one has none, and the
    encoder learns to tell from a perturbed image what a clean one shows. Encoders without pooling
    compare position by position (losses.nt_xent_of_maps).
    """
    contrast = losses.nt_xent_of_maps if config.encoder.pool == "none" else losses.nt_xent
    model = build.encoder_model(config)
    schedule = build.schedule_of(config)
    training = config_lib.stage_training(config, "encoder")
    _check_levels(config, training, "encoder")

    def loss(params, batch, key):
        keys = jax.random.split(key, 6)
        x0 = to_float(batch["image"])
        b = x0.shape[0]
        i = jnp.broadcast_to(jax.random.randint(keys[1], (), 0, training.max_index), (b,))
        alpha_bar = schedules.gather(schedule.alpha_bar, i)
        first = schedules.perturb(x0, jax.random.normal(keys[2], x0.shape), alpha_bar)
        if training.view == "lowpass":
            view = energies.lowpass(x0, training.factor)
        else:
            view = views.style(x0, keys[4])
        second, j = view, jnp.zeros_like(i)
        if not training.clean:
            second, j = schedules.perturb(view, jax.random.normal(keys[3], x0.shape), alpha_bar), i
        pair, times = jnp.concatenate([first, second]), jnp.concatenate([i, j])
        z = model.apply(params, pair, times, train=True)
        value, accuracy = contrast(z[:b], z[b:], training.temperature)
        alignment, uniformity = losses.alignment_uniformity(z[:b], z[b:])
        metrics = {"accuracy": accuracy, "alignment": alignment, "uniformity": uniformity}
        return value, metrics

    return Stage(config_lib.domains(config), model.init, loss)


def classifier(config: ConfigDict) -> Stage:
    """The stage of EGSDE's domain classifier: cross-entropy of the domain at a random t."""
    model = build.classifier_model(config)
    schedule = build.schedule_of(config)
    training = config_lib.stage_training(config, "classifier")
    _check_levels(config, training, "classifier")

    def loss(params, batch, key):
        keys = jax.random.split(key, 4)
        x0 = to_float(batch["image"])
        i = draw_levels(keys[1], uniform_shares(training.max_index), x0.shape[0])
        x = schedules.perturb(
            x0, jax.random.normal(keys[2], x0.shape), schedules.gather(schedule.alpha_bar, i)
        )
        logits, _ = model.apply(params, x, i, train=True)
        value, accuracy = losses.cross_entropy(logits, batch["domain"])
        return value, {"accuracy": accuracy}

    return Stage(config_lib.domains(config), model.init, loss)


def _gan(config: ConfigDict, method: str) -> Stage:
    """The stage of CUT or FastCUT; an example is a pair of images, one per domain."""
    settings = config_lib.gan_settings(config, method)
    training = config_lib.stage_training(config, method)
    sources = config_lib.sources(config)
    if len(sources) > 1:
        raise ValueError(
            f"config.data.source is '{config.data.source}'; {method} is trained on one domain"
        )
    generator, discriminator, sampler = build.gan_modules(config)
    layers = tuple(settings.layers)
    networks = cut.Networks(
        generate=generator.apply,
        encode=lambda params, x: generator.apply(params, x, layers, encode_only=True),
        discriminate=discriminator.apply,
        sample=sampler.apply,
    )

    def init(key):
        keys = jax.random.split(key, 3)
        size = config.data.image_size
        x = jnp.zeros((1, size, size, 3))
        params = {
            "generator": generator.init(keys[0], x),
            "discriminator": discriminator.init(keys[1], x),
        }
        maps = jax.eval_shape(networks.encode, params["generator"], x)
        maps = [jnp.zeros(s.shape) for s in maps]
        params["patch_sampler"] = sampler.init(keys[2], maps, [jnp.zeros(1, int)] * len(maps))
        return params

    def images(batch, key):
        pairs = to_float(batch["image"])
        pairs = pairs.reshape(-1, 2, *pairs.shape[1:])
        return pairs[:, 0], pairs[:, 1]

    def make_step(tx, gather):
        update = cut.make_update(networks, settings, training, tx, gather)
        return cut.make_step(networks, settings, update, images)

    return Stage(
        (*sources, config.data.target),
        init,
        images=2,
        make_step=make_step,
        optimiser=state.each_part,
        averaged=lambda params: params["generator"],
        with_averaged=lambda params, generator: {**params, "generator": generator},
    )


def make(config: ConfigDict, stage: str, workdir=None) -> Stage:
    """The stage of this name; "latent" reads the autoencoder of `workdir`.

    Raises:
      ValueError: a network or caption that the stage needs is missing.
    """
    if stage in config_lib.GANS:
        return _gan(config, stage)
    if stage == "latent":
        return Stage(config_lib.domains(config), **text_to_image.latent(config, workdir))
    if stage == "autoencoder":
        return Stage(config_lib.domains(config), **text_to_image.autoencoder(config))
    if stage == config_lib.SOURCE_SCORE:
        return score(config, config_lib.sources(config))
    if stage == "score":
        return score(config, (config.data.target,))
    return {"encoder": encoder, "classifier": classifier}[stage](config)
