"""Translations in the latents of an autoencoder, for published score networks that know no pixels.

z = factor · E(x), and x = D(z / factor) (Rombach et al. 2022); E(x) is the mean of the encoder.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from cdsde.networks import published
from cdsde.networks.stable_diffusion.vae import AutoencoderKL

PARAMS = "autoencoder"  # name of its parameters among those of a sampler


def autoencoder(config: ConfigDict) -> tuple[AutoencoderKL, float] | None:
    """The autoencoder of a score network on latents, and its factor; None where it sees pixels."""
    if config.score.arch != "published":
        return None
    found = published.of_text(config.score.published)
    if found.autoencoder is None:
        return None
    return published.autoencoder(found, jnp.dtype(config.dtype)), found.autoencoder["factor"]


def encode(config: ConfigDict, params: dict, x):
    """Images `[B, S, S, 3]` in [-1, 1] as latents `[B, s, s, C]`; images where there are none."""
    if (found := autoencoder(config)) is None:
        return x
    module, factor = found
    moments: Any = module.apply(params[PARAMS], x, method="encode")
    return factor * moments.mean


def decode(config: ConfigDict, params: dict, z):
    """The inverse of `encode`, about [-1, 1]."""
    if (found := autoencoder(config)) is None:
        return z
    module, factor = found
    return module.apply(params[PARAMS], z / factor, method="decode")
