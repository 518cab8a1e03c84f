"""What several tests of training need."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.train import stages


def rows(workdir, stage: str) -> list[dict[str, float]]:
    with (Path(workdir) / "logs" / stage / "metrics.csv").open(newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), str(path))


def distance(a, b) -> float:
    """‖a - b‖ / ‖b‖ over all leaves."""
    a, b = (np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(t)])
            for t in (a, b))  # fmt: skip
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def one_colour(config, domains) -> stages.Stage:
    """Learns the mean colour of the target's pictures; a draw joins in, so that keys matter."""
    width = config.score.channels

    def loss(params, batch, key):
        x = batch["image"].astype(jnp.float32) / 255
        noise = 0.1 * jax.random.normal(key, (1, 3))
        error = (x.mean((1, 2)) - params["colour"].mean(0, keepdims=True) + noise) ** 2
        return jnp.mean(error), {"mean": jnp.mean(params["colour"])}

    return stages.Stage(domains, lambda key: {"colour": jax.random.normal(key, (width, 3))}, loss)
