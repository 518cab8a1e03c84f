"""What a network was trained with, against what the config asks of it."""

import json

import numpy as np
import pytest
from helpers import one_sentence, random_params

from cdsde import load_config
from cdsde.weights import checkpoint, exchange, exported, knowledge, resolve
from cdsde.weights.torch import convert


@pytest.fixture
def trained(tiny, tmp_path):
    """`trained(stage)`: a work folder with a checkpoint of the tiny task."""

    def make(stage):
        config = tiny()
        plain = json.loads(config.to_json_best_effort())
        checkpoint.save_imported(tmp_path, stage, random_params(config, stage), plain)
        return tmp_path

    return make


CHANGES = [
    ("score", {"score__prediction": "eps"}, "config.score.prediction is eps, the weights have v"),
    ("score", {"sde__schedule": "cosine"}, "config.sde.schedule is cosine"),
    ("score", {"score__group_channels": 2}, "config.score.group_channels is 2"),
    ("score", {"score__num_head_channels": 16}, "config.score.num_head_channels is 16"),
    ("score", {"score__attention_resolutions": (16,)}, "config.score.attention_resolutions"),
    ("score", {"data__image_size": 32}, "config.data.image_size is 32, the weights have 16"),
    ("encoder", {"encoder__group_channels": 2}, "config.encoder.group_channels is 2"),
    ("encoder", {"encoder__pool": "adaptive"}, "config.encoder.pool is adaptive"),
    ("classifier", {"classifier__num_head_channels": 16}, "config.classifier.num_head_channels"),
    ("cut", {"cut__group_channels": 2}, "config.cut.group_channels is 2, the weights have 1"),
    ("autoencoder", {"data__image_size": 32}, "config.data.image_size is 32"),
]


@pytest.mark.parametrize(("stage", "changes", "named"), CHANGES, ids=lambda x: str(x)[:40])
def test_ones_own_checkpoint_is_compared_with_the_config(trained, tiny, stage, changes, named):
    workdir = trained(stage)
    resolve.load(tiny(), workdir, stage)
    with pytest.raises(ValueError) as error:
        resolve.load(tiny(**changes), workdir, stage)
    assert named in str(error.value) and one_sentence(str(error.value))
    assert f"checkpoints/{stage}/0" in str(error.value)


SWAPPED = {"data__source": "yellow", "data__target": "blue"}


@pytest.mark.parametrize("stage", ["score", "cut", "fastcut"])
def test_a_network_of_another_target_is_refused(trained, tiny, stage):
    workdir = trained(stage)
    with pytest.raises(ValueError, match="was trained on .*yellow.*blue, which it does not know"):
        resolve.load(tiny(**SWAPPED), workdir, stage)
    resolve.load(tiny(**SWAPPED), workdir, stage, to_train=True)


def test_a_source_score_may_be_the_score_of_that_domain(tmp_path):
    config = load_config("noto2fluent", {"data.source": "twemoji"})
    config.weights.source_score = "shipped:score-twemoji-64"
    resolve.load(config, tmp_path, "source_score")
    config.weights.source_score = "shipped:score-fluent-64"
    with pytest.raises(ValueError, match="on fluent, and the config's data.source is twemoji"):
        resolve.load(config, tmp_path, "source_score")


def test_guides_know_both_directions(trained, tiny):
    workdir = trained("encoder")
    resolve.load(tiny(**SWAPPED), workdir, "encoder")


def test_a_training_that_goes_on_with_other_data_is_told(tiny, caplog):
    record = json.loads(tiny().to_json_best_effort())
    with caplog.at_level("WARNING"):
        knowledge.check_resumed(record, tiny(), "score", "score/2")
        knowledge.check_resumed({}, tiny(), "score", "score/2")
        assert not caplog.messages
        knowledge.check_resumed(record, tiny(data__root="/moved"), "score", "score/2")
    assert caplog.messages == [
        f"score/2 was trained on the data of {record['data']['root']}, and training goes on with "
        "config.data.root=/moved: check that they are the same"
    ]


def test_names_of_other_data_are_a_warning(trained, tiny, caplog):
    workdir = trained("score")
    with caplog.at_level("WARNING"):
        resolve.load(tiny(data__root="emoji", data__source="noto", data__target="fluent"),
                     workdir, "score")  # fmt: skip
    assert "was trained on yellow" in caplog.text and "fluent, of other data" in caplog.text


@pytest.mark.parametrize(
    ("task", "changes", "stage"),
    [
        ("twemoji2fluent", {"data.target": "noto"}, "score"),
        ("noto2fluent", {"data.source": "fluent", "data.target": "twemoji"}, "score"),
        ("twemoji2fluent", {"method": "cut", "data.source": "noto"}, "cut"),
    ],
)
def test_shipped_weights_know_their_domains(task, changes, stage, tmp_path):
    with pytest.raises(ValueError, match="shipped:.* was trained on .* does not know") as error:
        resolve.load(load_config(task, changes), tmp_path, stage)
    assert one_sentence(str(error.value)) and "config's data" in str(error.value)
    for guide in ("encoder", "classifier"):
        resolve.load(load_config(task, changes), tmp_path, guide)


def test_shipped_weights_fit_their_tasks(tmp_path):
    for task in ("twemoji2fluent", "noto2fluent", "fluent2twemoji"):
        for stage in ("score", "encoder", "classifier", "cut"):
            if stage != "cut" or task == "twemoji2fluent":
                resolve.load(load_config(task), tmp_path, stage)
    for task in ("gothic2mincho", "mincho2gothic"):
        for stage in ("score", "source_score", "encoder", "classifier"):
            resolve.load(load_config(task), tmp_path, stage)
    with pytest.raises(ValueError, match="config.cut.group_channels is 1, the weights have 8"):
        resolve.load(load_config("twemoji2fluent", {"cut.group_channels": 1}), tmp_path, "cut")


def test_records_of_earlier_versions_are_passed_over_where_they_are_silent(tiny):
    config = tiny()
    assert knowledge.architecture_of_record({}, config, "score") == {"network": {}}
    knowledge.check_resumed({}, config, "score", "a file")
    knowledge.check_domains({}, config, "score", "a file")


def test_a_record_from_before_fourier_features_is_of_a_network_without(tiny):
    config = tiny(score__fourier=(2, 3))
    record = json.loads(config.to_json_best_effort())
    del record["score"]["fourier"]
    saved = knowledge.architecture_of_record(record, config, "score")
    expected = ["config.score.fourier is [2, 3], the weights have ()"]
    assert knowledge.differences(saved, config, "score") == expected
    assert not knowledge.differences(saved, tiny(), "score")


def test_a_network_may_be_asked_for_another_class(tiny):
    saved = knowledge.architecture(tiny(score__label=1, score__guidance=4.0), "score")
    assert knowledge.differences(saved, tiny(score__label=2), "score") == []
    assert knowledge.differences(saved, tiny(score__prediction="eps", score__label=2), "score")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_damaged_weights_are_refused(tiny, tmp_path, value):
    config = tiny()
    params = random_params(config, "score")
    params["params"]["time_embed_0"]["bias"][3] = value
    checkpoint.save_imported(tmp_path, "score", params, {})
    with pytest.raises(ValueError, match="score/0 is damaged: 1 .*time_embed_0/bias") as error:
        resolve.load(config, tmp_path, "score")
    assert one_sentence(str(error.value))
    path = tmp_path / "score.safetensors"
    exported.save(path, config, "score", params, {})
    config.weights.score = str(path)
    with pytest.raises(ValueError, match="score.safetensors is damaged: 1 .*time_embed_0/bias"):
        resolve.load(config, tmp_path / "elsewhere", "score")


def test_published_weights_with_nan_are_refused(tiny, tmp_path):
    config = tiny(score__prediction="eps", score__group_channels=1)
    params = random_params(config, "score")
    params["params"]["time_embed_0"]["bias"][3] = np.nan
    path = tmp_path / "published.safetensors"
    convert.save_state_dict(path, params, "adm")
    config.weights.score = str(path)
    with pytest.raises(ValueError, match=r"1 of the weights hold NaN .*time_embed.0.bias") as e:
        exchange.import_weights(config, tmp_path / "work")
    assert one_sentence(str(e.value)) and str(path) in str(e.value)
    assert "fit" not in str(e.value)
    assert checkpoint.latest_step(tmp_path / "work", "score") is None
