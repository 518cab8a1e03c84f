r"""A row that cheats: a network trained on true pairs, which no unpaired method sees.

It tells how near to the true target a small network comes that has seen some pairs. The score
network's U-Net u, from random parameters and at t = 0, is trained on the pairs (x, y) of `val`:

    minimise  E ‖x + u(x) - y‖²                                                             (1)

The minimum of (1) is the mean of all targets that a source may have, so that its pictures are
nearest to the truth and blurred. `sharp` moves each pixel to black or white, whichever is nearer:
for drawings in black on white, a picture without blur that is as near to the truth as this
network knows how.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cdsde.data import inputs, loader, to_float, to_uint8
from cdsde.evaluate import translations
from cdsde.networks import build

SPLIT = "val"  # whose pairs are learned; results are for other splits alone
STEPS, BATCH, RATE = 600, 16, 1e-3


def trained(config: ConfigDict, steps: int = STEPS) -> Callable[[np.ndarray], np.ndarray]:
    """Trains the network on the true pairs of `val`; seed 0.

    Args:
      config: of a task with true pairs.
      steps: of `BATCH` images.

    Returns:
      `uint8 [H, W, 3] -> uint8 [H, W, 3]`, the network's picture of a source image.
    """
    config = config.copy_and_resolve_references()
    config.sample.split = SPLIT
    config.score.update(prediction="eps", fourier=())  # the U-Net's own output
    network = build.score_model(config)

    def predict(params, x):
        return x + network.apply(params, x, jnp.zeros(len(x)))

    def loss(params, x, y):
        return jnp.mean((predict(params, x) - y) ** 2)

    rate = optax.cosine_decay_schedule(RATE, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))

    @jax.jit
    def update(params, state, x, y):
        change, state = optimiser.update(jax.grad(loss)(params, x, y), state)
        return optax.apply_updates(params, change), state

    source, truth = inputs.open_input(config), inputs.open_truth(config)
    pairs = np.concatenate([_images(config, s) for s in (source, truth)], -1)
    params = network.init(jax.random.key(0))
    state = optimiser.init(params)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        # One shift for both images of a pair.
        chosen = [{"image": pairs[j]} for j in rng.integers(len(pairs), size=BATCH)]
        batch = np.stack([loader.shift(c, rng, config.data.shift)["image"] for c in chosen])
        params, state = update(params, state, batch[..., :3], batch[..., 3:])
    apply = jax.jit(predict)
    return lambda image: to_uint8(np.asarray(apply(params, to_float(image)[None])[0]))


def sharp(image: np.ndarray) -> np.ndarray:
    """Black or white, whichever is nearer, per channel; uint8 `[H, W, 3]`."""
    return np.where(image < 128, np.uint8(0), np.uint8(255))


def _images(config: ConfigDict, source) -> np.ndarray:
    """All images of a source, float32 `[N, S, S, 3]` in [-1, 1]."""
    read = translations.resized(config, source)
    return np.stack([to_float(read(j)) for j in range(len(source))])
