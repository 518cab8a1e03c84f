"""Statistics of both domains' training images, computed when a sampler is loaded.

    domain direction  for the contrast of domains (energies.py, equation 5): the difference of the
                      domains' mean features, at noise levels over the whole range
    colour table      for `sample.match_colours` (histograms.py): maps each value to the target
                      value of equal cumulative frequency

Both are deterministic: the choice of images and their noise are fixed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import inputs, to_float
from cdsde.diffusion import energies, histograms, methods, schedules
from cdsde.diffusion.energies import DomainDirection
from cdsde.diffusion.levels import indices
from cdsde.networks import build
from cdsde.runtime import cache, compiler, trees
from cdsde.runtime.padding import pad

LEVELS = 24  # evenly spaced in log-SNR; the energy uses the nearest one
BATCH = 32
VERSION = 1  # of the computation; a higher one makes stored directions void


def needs_direction(config: ConfigDict) -> bool:
    """Whether the config's method has an energy that contrasts domains."""
    return config.method in config_lib.SDES and _domain_images(config) > 0


def _domain_images(config: ConfigDict) -> int:
    return methods.METHODS[config.method].domain_images(config[config.method])


def domain_direction(config: ConfigDict, params) -> tuple[DomainDirection, str]:
    """The direction from the target's mean features to the sources', and a line about its images.

    Args:
      config: the task; its method's `domain_images` is the number of images per domain.
      params: the encoder's parameters.

    Raises:
      ValueError: a domain has no train split.
    """
    key = f"{config.method}.domain_images"
    target, sources, about = inputs.training_examples(config, key)
    schedule = build.schedule_of(config)
    index = indices(schedule.num_steps, LEVELS, "log_snr", schedule.log_snr)

    def compute():
        return scaled_gap(*(_means(config, params, part, index) for part in (sources, target)))

    made_of = {
        "version": VERSION,
        "images": about,
        "encoder": [trees.digest(params), config.encoder.to_json_best_effort()],
        "levels": [index.tolist(), config.sde.to_json_best_effort()],
        "rest": [config.data.image_size, config.data.filter, config.data.fit, config.dtype],
    }
    normal = cache.array(config.cache, "domain_direction", made_of, compute)
    return DomainDirection(index.astype(np.float32), normal.astype(np.float32)), about


def scaled_gap(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """source - target, divided by the mean over levels of its squared length; all `[L, D]`.

    On average over levels, the scalar products of the two means with the result differ by 1, so
    that a weight has the same effect with any network. One scale serves all levels: a scale per
    level would enlarge the direction where noise has made the domains indistinguishable.
    """
    gap = source - target
    return gap / np.mean(np.sum(gap**2, axis=-1))


def direction_shapes(config: ConfigDict) -> DomainDirection:
    """The shapes and dtypes of the domain direction; reads no image."""
    side, model = config.data.image_size, build.encoder_model(config)

    def features(key):
        x = jnp.zeros((1, side, side, 3))
        return model.apply(model.init(key), x, jnp.zeros(1), space="features")

    width = jax.eval_shape(features, jax.random.key(0)).shape[-1]
    shapes = DomainDirection((LEVELS,), (LEVELS, width))
    return DomainDirection(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def _means(config: ConfigDict, params, images: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mean over images and positions of the features' directions, float64 `[L, D]`."""
    apply = build.encoder_model(config).apply
    table = jnp.asarray(build.schedule_of(config).alpha_bar)

    @compiler.jit
    def total(params, x0, mask, number, i):
        key = jax.random.fold_in(jax.random.key(number), i)
        x = schedules.perturb(x0, jax.random.normal(key, x0.shape), table[i])
        z = energies.unit(apply(params, x, i.astype(jnp.float32), space="features"))
        return jnp.einsum("bhwd,b->d", z, mask) / (z.shape[1] * z.shape[2])

    count = len(images)
    rows = to_float(pad(images, count + -count % BATCH))
    mask = np.arange(len(rows)) < count

    def mean(i):
        parts = (
            total(params, rows[n : n + BATCH], mask[n : n + BATCH], n, jnp.int32(i))
            for n in range(0, len(rows), BATCH)
        )
        return sum(np.asarray(part, np.float64) for part in parts) / count

    return np.stack([mean(i) for i in index])


def needs_colours(config: ConfigDict) -> bool:
    """Whether the config's method starts from the source in the target's colours."""
    return config.method in config_lib.SDES and config.sample.match_colours > 0


def colour_table(config: ConfigDict) -> tuple[np.ndarray, str]:
    """`histograms.table` from the sources to the target, and a line about its images.

    It reads `config.sample.match_colours` training images of each domain.

    Raises:
      ValueError: a domain has no train split.
    """
    target, sources, about = inputs.training_examples(config, "sample.match_colours")
    return histograms.table(sources, target), about
