"""What the contrast of domains (energies equation 5) looks at: at levels over the whole range of
noise, the direction from the target's mean to the sources' in the contrastive encoder's features,
from some training images of each.

It is computed when a sampler is loaded, from the train split of `config.data`; which images these
are, and their noise, is the same every time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import inputs, to_float
from cdsde.diffusion import energies, histograms, schedules, solvers
from cdsde.networks import build

LEVELS = 24  # evenly spaced in log-SNR; the energy looks at the nearest one
BATCH = 32


def needs_direction(config: ConfigDict) -> bool:
    """Whether the config's method contrasts domains."""
    return config.method == "contrastive_sde" and config.contrastive_sde.domain_images > 0


def domain_direction(config: ConfigDict, params) -> tuple[energies.Discriminant, str]:
    """The discriminant of `config.data`'s domains, and a line that says what it is made of.

    Args:
      config: the task; `contrastive_sde.domain_images` of each domain are looked at.
      params: of the encoder.

    Raises:
      ValueError: the train split of a domain is not there.
    """
    target, sources, where = inputs.training_examples(config, "contrastive_sde.domain_images")
    schedule = build.schedule_of(config)
    index = solvers.indices(schedule.num_steps, LEVELS, schedule.log_snr)
    normal = direction(*(_means(config, params, part, index) for part in (sources, target)))
    return energies.Discriminant(index.astype(np.float32), normal.astype(np.float32)), where


def direction(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """From the target's means to the source's, scaled; both and the result are `[L, D]`.

    The scale is one number for all levels: on average over them, the means' scalar products with
    the direction differ by 1. So a weight is of one size for any network. Scaled at each level by
    itself, directions between domains that noise has made one would become large.
    """
    gap = source - target
    return gap / np.mean(np.sum(gap**2, axis=-1))


def direction_shapes(config: ConfigDict) -> energies.Discriminant:
    """The discriminant's shapes, without reading an image."""
    side, model = config.data.image_size, build.encoder_model(config)

    def features(key):
        x = jnp.zeros((1, side, side, 3))
        return model.apply(model.init(key), x, jnp.zeros(1), space="features")

    width = jax.eval_shape(features, jax.random.key(0)).shape[-1]
    of = energies.Discriminant((LEVELS,), (LEVELS, width))
    return energies.Discriminant(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in of))


def _means(config: ConfigDict, params, images: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mean over images and positions of the features' directions, float64 `[L, D]`."""
    apply = build.encoder_model(config).apply
    table = jnp.asarray(build.schedule_of(config).alpha_bar)

    @jax.jit
    def total(params, x0, mask, number, i):
        key = jax.random.fold_in(jax.random.key(number), i)
        x = schedules.perturb(x0, jax.random.normal(key, x0.shape), table[i])
        z = energies.unit(apply(params, x, i.astype(jnp.float32), space="features"))
        return jnp.einsum("bhwd,b->d", z, mask) / (z.shape[1] * z.shape[2])

    padding = -len(images) % BATCH
    rows = to_float(np.concatenate([images, np.repeat(images[-1:], padding, 0)]))
    mask = np.arange(len(rows)) < len(images)

    def mean(i):
        parts = (
            total(params, rows[at : at + BATCH], mask[at : at + BATCH], at, jnp.int32(i))
            for at in range(0, len(rows), BATCH)
        )
        return sum(np.asarray(part, np.float64) for part in parts) / len(images)

    return np.stack([mean(i) for i in index])


def needs_colours(config: ConfigDict) -> bool:
    """Whether the config's method starts from a source in the target's colours."""
    return config.method in config_lib.SDES and config.sample.match_colours > 0


def colour_table(config: ConfigDict) -> tuple[np.ndarray, str]:
    """The `table` of `config.data`'s domains, and a line that says what it is made of.

    `config.sample.match_colours` training images of each domain are looked at.

    Raises:
      ValueError: the train split of a domain is not there.
    """
    target, source, where = inputs.training_examples(config, "sample.match_colours")
    return histograms.table(source, target), where
