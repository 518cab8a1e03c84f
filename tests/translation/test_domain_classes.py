"""Score networks that know several domains, each as a class (`score.domains`)."""

import jax
import numpy as np
import pytest
from helpers import one_sentence, random_params

from cdsde.networks import build
from cdsde.runtime import records
from cdsde.train import loop
from cdsde.translation import compiled
from cdsde.translation import run as translation
from cdsde.weights import checkpoint, domain_classes, exported, resolve

pytestmark = pytest.mark.usefixtures("compile_quickly")
BOTH = ("yellow", "blue")


def score_of(config, params, stage, x, **classes):
    return np.asarray(build.MODELS[stage](config).apply(params, x, 300.0, **classes))


def test_a_network_is_asked_for_the_class_of_the_target_or_of_the_source(tiny):
    config = tiny(score__domains=BOTH)
    params = random_params(config, "score")
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("f4")
    target, source = (score_of(config, params, s, x) for s in ("score", "source_score"))
    assert np.abs(target - source).max() > 1e-3
    for number, expected in enumerate((target, source)):  # yellow is the target
        classes = np.full(2, number)
        np.testing.assert_array_equal(score_of(config, params, "score", x, y=classes), expected)
    turned = tiny(score__domains=BOTH, data__source="yellow", data__target="blue")
    np.testing.assert_array_equal(score_of(turned, params, "score", x), source)


def test_one_training_makes_the_networks_of_both_directions(tiny, tmp_path):
    changes = {"method": "ddib", "score__domains": BOTH, "train__steps": 2}
    changes |= {"sample__solver": "ddim", "sample__eta": 0.0, "sample__spacing": "index"}
    config = tiny(**changes)
    assert loop.pending_stages(config, tmp_path) == ("score",)
    loop.train(config, tmp_path)
    assert loop.pending_stages(config, tmp_path) == ()
    tmp_path /= "trained_for_long"  # a network that tells its domains apart
    checkpoint.save_imported(tmp_path, "score", random_params(config, "score"), {})
    pictures = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    results = []
    for source, target in (("blue", "yellow"), ("yellow", "blue")):
        turned = tiny(**changes, data__source=source, data__target=target)
        sampler, origins = compiled.load_sampler(turned, tmp_path)
        assert origins["score"] == origins["source_score"]
        results.append(sampler(pictures, np.arange(2, dtype=np.uint32)))
    assert np.any(results[0] != results[1])


def test_a_network_of_one_domain_is_trained_on_for_several(tiny, tmp_path):
    one = tiny()
    params = random_params(one, "score")
    path = tmp_path / "one.safetensors"
    data = {"source": "blue", "target": "yellow", "root": one.data.root}
    exported.save(path, one, "score", params, {"stage": "score", "data": data})
    config = tiny(score__domains=BOTH, weights__score=str(path))
    loaded, _ = resolve.load(config, tmp_path / "w", "score", new_domains=True)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("f4")
    for stage in ("score", "source_score"):  # until it has learnt what differs
        half = jax.tree.map(lambda a: np.asarray(np.asarray(a, np.float16), "f4"), params)
        expected = score_of(one, half, "score", x)
        np.testing.assert_allclose(score_of(config, loaded, stage, x), expected, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"score.domains is \['yellow', 'blue'\], the weights have"
    ):
        resolve.load(config, tmp_path / "w", "score")  # which samples, and does not train


def test_domains_that_a_network_knew_keep_their_vectors():
    table = np.arange(6, dtype="f4").reshape(2, 3)
    modules = {"label_emb": {"embedding": table}, "time_embed_2": {"bias": np.zeros(3, "f4")}}
    moved = domain_classes.moved({"params": modules}, ("a", "b"), ("c", "b"))
    np.testing.assert_array_equal(moved["params"]["label_emb"]["embedding"], [[0, 0, 0], [3, 4, 5]])
    assert set(domain_classes.moved({"params": modules}, ("a", "b"), ())["params"]) == {
        "time_embed_2"
    }


def test_a_file_of_several_domains_serves_each_of_them_and_no_other(tiny, tmp_path):
    config = tiny(score__domains=BOTH)
    path = tmp_path / "both.safetensors"
    data = {"source": "blue", "target": "yellow", "root": config.data.root}
    about = {"stage": "score", "data": data}
    exported.save(path, config, "score", random_params(config, "score"), about)
    turned = tiny(
        score__domains=BOTH, data__source="yellow", data__target="blue", weights__score=str(path)
    )
    for stage in ("score", "source_score"):
        resolve.load(turned, tmp_path / "w", stage)
    with pytest.raises(ValueError, match="score.domains is .*'red'.*the weights have") as error:
        other = tiny(
            score__domains=("yellow", "red"), data__domains=("blue", "yellow", "red"),
            data__target="red", weights__score=str(path),
        )  # fmt: skip
        resolve.load(other, tmp_path / "w", "score")
    assert one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score__domains": ("blue", "red")}, "data.target is 'yellow', which is not one of"),
        (
            {"method": "cyclediffusion", "score__domains": ("yellow", "red"),
             "sample__solver": "ddim", "sample__eta": 0.1},
            "data.source is 'blue', which is not one of",
        ),
        ({"score__domains": BOTH, "score__arch": "ddpm"}, "ddpm', a network without classes"),
        ({"score__domains": BOTH, "train__stage": "source_score"}, "train it as score"),
        ({"score__domains": ("yellow", "yellow")}, "names 'yellow' twice"),
    ],
)  # fmt: skip
def test_domains_that_do_not_fit_are_refused(tiny, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny(**changes)
    assert one_sentence(str(error.value))


def test_results_of_one_class_do_not_pass_for_those_of_another(tiny, tmp_path):
    folder = tmp_path / "three"
    three = ("yellow", "blue", "green")
    keys = {"score__domains": three, "data__domains": three, "method": "sdedit"}
    config = tiny(**keys, data__source="blue", data__target="yellow", sample__split="val")
    checkpoint.save_imported(folder, "score", random_params(config, "score"), {})
    translation.sample(config, folder)
    translation.sample(config, folder)  # nothing is left to do
    other = tiny(**keys, data__source="blue", data__target="green", sample__split="val")
    with pytest.raises(ValueError, match="data.target was yellow and is green") as error:
        translation.sample(other, folder)
    assert one_sentence(str(error.value))


def test_results_of_one_label_do_not_pass_for_those_of_another(tiny, tmp_path):
    records_of = [
        records.settings_record(tiny(method="sdedit", **changes), {}, "pictures")
        for changes in ({}, {"score__label": 3}, {"score__label": 3, "score__guidance": 4.0})
    ]
    assert "score" not in records_of[0]
    for other, words in ((1, "score.label was None and is 3"), (2, "score.guidance was 1.0 and")):
        with pytest.raises(ValueError, match=words):
            records.refuse_others(tmp_path, records_of[0], records_of[other], "take another")
