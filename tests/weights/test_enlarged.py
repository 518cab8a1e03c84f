"""Training at a larger size may begin with a network of smaller images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params

from cdsde import load_config
from cdsde.networks import build
from cdsde.weights import exported, resolve

SMALLER = {
    "score": {"score.patch_size": 1, "score.fourier": ()},
    "encoder": {"encoder.patch_size": 2},
    "classifier": {"classifier.patch_size": 2},
}


@pytest.fixture
def file(tmp_path):
    """`file(stage)`: the config of images of 32², and a file with a network of it."""

    def make(stage="score"):
        small = load_config("twemoji2fluent", {"data.image_size": 32, **SMALLER[stage]})
        path = tmp_path / "small.safetensors"
        exported.save(path, small, stage, random_params(small, stage), {})
        small.weights[stage] = str(path)
        return small, str(path)

    return make


@pytest.mark.parametrize("stage", SMALLER)
def test_on_repeated_pixels_the_larger_network_says_the_same(stage, file, tmp_path):
    small, path = file(stage)
    large = load_config("twemoji2fluent", {f"weights.{stage}": path})
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1)
    t = jnp.array([30, 400])
    there, _ = resolve.load(small, tmp_path, stage)
    here, _ = resolve.load(large, tmp_path, stage, to_train=True)
    shapes = resolve.shapes(large, stage)
    assert jax.tree.map(np.shape, here) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    repeated = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    said = build.MODELS[stage](large).apply(here, repeated, t)
    expected = build.MODELS[stage](small).apply(there, x, t)
    if stage == "score":
        expected = jnp.repeat(jnp.repeat(expected, 2, 1), 2, 2)
    np.testing.assert_allclose(
        *(np.asarray(jax.tree.leaves(a)[0]) for a in (said, expected)), atol=2e-4
    )


@pytest.mark.parametrize(
    "more",
    [
        {"score.patch_size": 1},  # another grid of positions
        {"score.patch_size": 2, "score.prediction": "eps"},
        {"score.patch_size": 2, "score.channels": 64},
    ],
)
def test_a_network_that_differs_otherwise_is_refused(more, file, tmp_path):
    config = load_config("twemoji2fluent", {"weights.score": file()[1], **more})
    with pytest.raises(ValueError, match="small.safetensors does not fit the config"):
        resolve.load(config, tmp_path, "score", to_train=True)


def test_a_network_of_smaller_images_does_not_translate(file, tmp_path):
    config = load_config("twemoji2fluent", {"weights.score": file()[1]})
    with pytest.raises(ValueError, match="data.image_size is 64, the weights have 32"):
        resolve.load(config, tmp_path, "score")
