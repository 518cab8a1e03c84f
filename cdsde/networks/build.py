"""Builds networks from the config, as pure `init` and `apply` functions.

A stage's network has the same signature for all architectures (t is the raw index 0 … T-1, scalar
or `[B]`; x is `[B, H, W, 3]` in [-1, 1]):

    score         apply(params, x, t) -> eps [B, H, W, 3]
    encoder       apply(params, x, t, space=...) -> [B, D] or [B, h, w, C]
    classifier    apply(params, x, t) -> (logits [B, n], features [B, h, w, C])
    cut, fastcut  apply(params, x) -> image [B, H, W, 3]
    autoencoder   apply(params, x, method="encode" | "decode")
    latent        apply(params["unet"], z, t, text) -> [B, h, w, C]

Training passes `train=True` to the first three, and `rngs={"dropout": key}` to the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.config import fitting
from cdsde.diffusion import class_guidance, paths, schedules
from cdsde.networks import (
    ADMEncoder,
    ADMUNet,
    CUTGenerator,
    DDPMUNet,
    PatchDiscriminator,
    PatchSampler,
    blocks,
    published,
)
from cdsde.networks.contrastive import ContrastiveEncoder
from cdsde.networks.features.vgg import FirstLayers
from cdsde.networks.stable_diffusion import small


class Model(NamedTuple):
    """A network: `init(key) -> params`, `apply(params, x, t, ...)`."""

    init: Callable
    apply: Callable


def schedule_of(config: ConfigDict) -> schedules.Schedule:
    """The noise schedule of `config.sde`."""
    return schedules.SCHEDULES[config.sde.schedule](config.sde.num_steps)


def space_to_depth(x, size: int):
    """`[B, H, W, C]` → `[B, H/size, W/size, size²C]`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


def depth_to_space(x, size: int):
    """`[B, H, W, C]` → `[B, H·size, W·size, C/size²]`, the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, size, size, c // size**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * size, w * size, c // size**2)


def _adm_fields(config: ConfigDict, stage: str) -> dict:
    """Constructor fields that the ADM U-Net and its encoder half share."""
    net = config[stage]
    grid = config.data.image_size // net.patch_size
    return dict(
        channels=net.channels,
        channel_mult=tuple(net.channel_mult),
        num_res_blocks=net.num_res_blocks,
        attention_factors=tuple(grid // r for r in net.attention_resolutions if grid % r == 0),
        num_head_channels=net.num_head_channels,
        resblock_updown=net.resblock_updown,
        group_channels=net.group_channels,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def score_module(config: ConfigDict):
    """The linen module of `config.score`, without patches and without `prediction`."""
    fitting.check(config, "score")
    net, patch = config.score, config.score.patch_size
    if net.arch == "adm":
        out = (6 if net.learn_sigma else 3) * patch**2
        return ADMUNet(
            out_channels=out,
            num_heads=net.num_heads,
            use_scale_shift_norm=net.use_scale_shift_norm,
            conv_resample=net.conv_resample,
            new_attention_order=net.new_attention_order,
            dropout=net.dropout,
            **_adm_fields(config, "score"),
        )
    return DDPMUNet(
        channels=net.channels,
        channel_mult=tuple(net.channel_mult),
        num_res_blocks=net.num_res_blocks,
        attention_resolutions=tuple(net.attention_resolutions),
        image_size=config.data.image_size // patch,
        resamp_with_conv=net.conv_resample,
        dropout=net.dropout,
        out_channels=3 * patch**2,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def score_model(config: ConfigDict) -> Model:
    """The score network of `config.score`: predicts ε whatever `config.score.prediction`.

    With `variance=True` it returns `(ε, v)` of a network with `learn_sigma`.
    """
    net, schedule = config.score, schedule_of(config)
    if net.arch == "published":
        return _published_score(config)
    init, apply = _patched(config, net, score_module(config))

    def apply_eps(params, x, t, variance=False, **kwargs):
        # A learned variance follows the noise in the channels; most published samplers ignore it.
        out = depth_to_space(apply(params, x, t, **kwargs), net.patch_size)
        eps, spread = out[..., :3], out[..., 3:]
        if net.prediction == "v":
            index = jnp.asarray(t).astype(jnp.int32)
            eps = schedules.v_to_eps(x, eps, schedules.gather(schedule.alpha_bar, index))
        return (eps, spread) if variance else eps

    return Model(init, apply_eps)


def source_score_model(config: ConfigDict) -> Model:
    """The score network of the source domain: that of `score`, for the class of the source."""
    config = config.copy_and_resolve_references()
    config.score.update({"label": config.score.source_label, "guidance": 1.0})
    return score_model(config)


def _published_score(config: ConfigDict) -> Model:
    """The network that `config.score.published` describes, on our process (diffusion/paths.py)."""
    description = published.of_text(config.score.published)
    module = published.module(description, jnp.dtype(config.dtype), config.remat)
    alpha_bar = schedule_of(config).alpha_bar
    tables = paths.tables(published.path_of(description), alpha_bar)
    tables = jax.tree.map(lambda column: np.asarray(column, np.float32), tables)
    label = config.score.label
    side = description.side or config.data.image_size
    shape = (1, side, side, description.channels)

    def classes(batch) -> dict:
        return {} if label is None else {"y": jnp.full((batch,), label, jnp.int32)}

    def init(key):
        return module.init(key, jnp.zeros(shape), jnp.zeros(1), **classes(1))

    def with_guidance(params):
        network, scale = functools.partial(module.apply, params), config.score.guidance
        if scale == 1:
            return network
        # The published sampling guides three channels, of latents too.
        return class_guidance.guided(network, description.classes, scale, channels=3)

    def apply(params, x, t, variance=False):
        index = jnp.asarray(t).astype(jnp.int32)
        p, q, o, k, d, time = (schedules.gather(column, index) for column in tables)
        p, q, o, k, d = (schedules.expand(column, x) for column in (p, q, o, k, d))
        out = with_guidance(params)(k * x + d, time, **classes(x.shape[0]))
        eps = p * x + o + q * out[..., : x.shape[-1]]
        return (eps, out[..., x.shape[-1] :]) if variance else eps

    return Model(init, apply)


def encoder_half_constants(net: ConfigDict) -> dict:
    """Published values of the encoder's and classifier's fields that have no config key."""
    return {
        "num_heads": fitting.FIXED_HEADS,
        "use_scale_shift_norm": True,
        "new_attention_order": False,
        "dropout": 0.0,
        # Without residual blocks that change the resolution, downsampling averages pixels.
        "conv_resample": net.resblock_updown,
    }


def _encoder_half(config: ConfigDict, stage: str, out_channels: int) -> ADMEncoder:
    fitting.check(config, stage)
    net = config[stage]
    return ADMEncoder(
        pool=net.pool,
        image_size=config.data.image_size // net.patch_size,
        out_channels=out_channels,
        **encoder_half_constants(net),
        **_adm_fields(config, stage),
    )


def encoder_model(config: ConfigDict) -> Model:
    """The contrastive encoder of `config.encoder`."""
    net = config.encoder
    module = ContrastiveEncoder(_encoder_half(config, "encoder", net.hidden_dim), net.embed_dim)
    return _patched(config, net, module)


def classifier_module(config: ConfigDict) -> ADMEncoder:
    """The linen module of `config.classifier`, with one class per domain."""
    return _encoder_half(config, "classifier", len(config_lib.domains(config)))


def classifier_model(config: ConfigDict) -> Model:
    """EGSDE's domain classifier."""
    return _patched(config, config.classifier, classifier_module(config))


def _patched(config: ConfigDict, net: ConfigDict, module) -> Model:
    """The module on patches of `net.patch_size`² pixels, as channels of a smaller image.

    The channels of a score network are the image and its Fourier features.
    """
    size, patch, exponents = config.data.image_size, net.patch_size, net.get("fourier", ())

    def seen(x):
        return space_to_depth(blocks.with_fourier_features(x, exponents), patch)

    def init(key):
        return module.init(key, seen(jnp.zeros((1, size, size, 3))), jnp.zeros(1))

    def apply(params, x, t, **kwargs):
        return module.apply(params, seen(x), t, **kwargs)

    return Model(init, apply)


def gan_modules(config: ConfigDict):
    """The linen modules of CUT: generator, discriminator, patch sampler."""
    net = config.cut
    shared = dict(group_channels=net.group_channels, dtype=jnp.dtype(config.dtype))
    return (
        CUTGenerator(net.channels, net.num_blocks, **shared),
        PatchDiscriminator(net.discriminator_channels, net.discriminator_layers, **shared),
        PatchSampler(net.patch_features),
    )


def gan_model(config: ConfigDict) -> Model:
    """The generator, which alone translates: `apply(params, x) -> [B, H, W, 3]`."""
    generator = gan_modules(config)[0]
    size = config.data.image_size

    def init(key):
        return generator.init(key, jnp.zeros((1, size, size, 3)))

    return Model(init, generator.apply)


def vgg_model(config: ConfigDict) -> Model:
    """The first layers of VGG: `apply(params, x)` with x `[B, H, W, 3]` in [-1, 1]."""
    return Model(lambda key: FirstLayers().init(key, jnp.zeros((1, 8, 8, 3))), FirstLayers().apply)


MODELS = {
    "score": score_model,
    "source_score": source_score_model,
    "vgg": vgg_model,
    "encoder": encoder_model,
    "classifier": classifier_model,
    "cut": gan_model,
    "fastcut": gan_model,
    "autoencoder": lambda config: Model(
        functools.partial(small.init_autoencoder, config), small.autoencoder(config).apply
    ),
    "latent": lambda config: Model(
        functools.partial(small.init_latent, config), small.unet(config).apply
    ),
}


def count_parameters(params) -> int:
    """Number of values in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
