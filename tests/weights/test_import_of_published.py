"""--mode=import compares what stands beside the weights, and writes nothing unless all fits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence, random_params

from cdsde.networks import build
from cdsde.weights import checkpoint, exchange
from cdsde.weights.torch import convert

pytestmark = pytest.mark.usefixtures("compile_quickly")
PUBLISHED = {"method": "sdedit", "score__prediction": "eps", "score__group_channels": 1}


@pytest.fixture
def task(tiny, tmp_path):
    """`task(**changes)`: a task, and the file of its score network with the configuration."""

    def make(arguments=(), **changes):
        config = tiny(**{**PUBLISHED, **changes})
        path = tmp_path / "w.safetensors"
        convert.save_state_dict(path, random_params(config, "score"), "adm")
        config.weights.score = str(path)
        about = exchange._guided_diffusion_of(tiny(**PUBLISHED), "score")
        about["arguments"] |= dict(arguments)
        (tmp_path / "w.config.json").write_text(json.dumps(about))
        return config

    return make


def refused(config, workdir, expected):
    with pytest.raises(ValueError, match=expected) as error:
        exchange.import_weights(config, workdir)
    assert one_sentence(str(error.value))
    assert not (workdir / "checkpoints").exists()


BY_NUMBER = {"score__num_head_channels": -1, "score__num_heads": 4}
DIFFERENT = [
    ({"noise_schedule": "cosine"}, {}, "config.sde.schedule is linear, the file has cosine"),
    ({"diffusion_steps": 4000}, {}, "config.sde.num_steps is 1000, the file has 4000"),
    ({"predict_xstart": True}, {}, "it has predict_xstart, for which there is no key"),
    ({"num_head_channels": 8}, {}, "config.score.num_head_channels is [0-9]+, the file has 8"),
    ({"num_head_channels": -1, "num_heads": 2}, BY_NUMBER, "config.score.num_heads is 4, the file"),
    ({"use_new_attention_order": True}, {}, "config.score.new_attention_order is False, the file"),
    ({"num_head_channels": -1, "num_heads_upsample": 2}, BY_NUMBER,
     "num_heads_upsample 2, for which there is no key; leave --mode=import out"),
    ({"diffusion_steps": 50, "rescale_timesteps": True}, {"sde__num_steps": 50,
     "sample__start": 20}, "rescale_timesteps, another linear noise on 50 levels, for which"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "changes", "told"), DIFFERENT, ids=[t for *_, t in DIFFERENT]
)
def test_what_the_configuration_says_otherwise_is_told_by_keys(
    task, tmp_path, arguments, changes, told
):
    config = task(arguments, **changes)
    refused(config, tmp_path, rf"w\.config\.json does not fit the config: .*{told}")


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ({}, {}),
        ({"num_heads": 7, "num_heads_upsample": 3, "rescale_timesteps": True}, {}),
        ({"num_head_channels": -1, "num_heads": 4}, BY_NUMBER),
        ({"noise_schedule": "cosine"}, {"sde__schedule": "cosine"}),
    ],
    ids=str,
)
def test_a_configuration_that_says_the_same_is_taken(task, tmp_path, arguments, changes):
    exchange.import_weights(task(arguments, **changes), tmp_path)
    assert checkpoint.newest_whole(tmp_path, "score") == 0


def test_nothing_is_written_unless_every_file_fits(task, tmp_path):
    config = task(method="egsde", classifier__patch_size=1)
    config.weights.classifier = config.weights.score
    refused(config, tmp_path, "adm_encoder")
    config.weights.classifier = None
    exchange.import_weights(config, tmp_path)
    config.weights.source_score = config.weights.score
    with pytest.raises(ValueError, match="checkpoints/score already holds a checkpoint"):
        exchange.import_weights(config, tmp_path)
    assert checkpoint.newest_whole(tmp_path, "source_score") is None


def test_a_network_of_other_images_is_refused(task, tmp_path):
    config = task()
    module = build.score_module(config)
    x = jnp.zeros((1, 16, 16, 6))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1))
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    convert.save_state_dict(config.weights.score, params, "adm")
    refused(config, tmp_path, "takes images of 6 channels, and images here have 3; name")


def test_the_keys_of_a_source_network_are_those_of_score(task, tmp_path):
    config = task(score__channels=64)
    other = task()
    other.weights.source_score, other.weights.score = config.weights.score, None
    convert.save_state_dict(config.weights.score, random_params(config, "score"), "adm")
    refused(other, tmp_path, "config.score.channels is 32, the file has 64")


def test_noise_that_no_file_can_name_is_told_before_anything_is_written(tiny, tmp_path):
    config = tiny(
        **PUBLISHED, sde__num_steps=50, sample__start=20, export__stage="score",
        export__format="published",
    )  # fmt: skip
    checkpoint.save_imported(tmp_path, "score", random_params(config, "score"), {})
    told = "cannot be exported as published: its noise .*; choose another config.export.format"
    with pytest.raises(ValueError, match=f"the score network {told}") as error:
        exchange.export_weights(config, tmp_path)
    assert one_sentence(str(error.value)) and not (tmp_path / "export").exists()
