"""What an exported network says of its training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence, random_params, read_json
from safetensors.numpy import load_file

from cdsde.networks import build
from cdsde.runtime.trees import flatten
from cdsde.train import loop
from cdsde.weights import checkpoint, diffusers, exchange, exported, resolve
from cdsde.weights.formats import guided_diffusion
from cdsde.weights.torch import convert

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.slow
def test_the_card_counts_every_run_by_its_own_rate(tiny, tmp_path, on_devices):
    on_devices(1)
    loop.train_stage(tiny(train__steps=1), tmp_path, "encoder")
    log = tmp_path / "logs" / "encoder" / "metrics.csv"
    # A run of 1 + 7200 steps at 2 a second, resumed for 7200 steps at 4 a second: 1 h + 0.5 h.
    log.write_text(
        "step,loss,steps_per_second\n1,5.0,0\n7201,2.0,2.0\n10801,1.5,4.0\n14401,1.0,4.0\n"
    )
    card = exchange.card(tiny(), tmp_path, "encoder")
    assert card["hours"] == pytest.approx(1.5)
    assert card["last_log_row"]["loss"] == 1.0
    assert card["step"] == checkpoint.latest_step(tmp_path, "encoder") == 1


@pytest.mark.slow
def test_an_exported_network_carries_its_card(tiny, tmp_path, on_devices):
    on_devices(1)
    config = tiny(train__steps=2, export__stage="encoder", export__format="cdsde")
    loop.train_stage(config, tmp_path, "encoder")
    path = exchange.export_weights(config, tmp_path)
    card = read_json(path.with_suffix(".json"))
    assert card["stage"] == "encoder" and card["step"] == 2 and card["hours"] >= 0
    assert card["training"]["steps"] == 2  # not that of the config, which train.steps overrides
    (tmp_path / "logs" / "encoder" / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics.csv does not exist, but the card needs it"):
        exchange.export_weights(config, tmp_path)


def said(expected, call, *arguments):
    with pytest.raises(ValueError, match=expected) as error:
        call(*arguments)
    assert one_sentence(str(error.value)) and "None" not in str(error.value)


def test_what_float16_has_not_is_written_in_float32(tiny, tmp_path):
    path = tmp_path / "encoder.safetensors"
    config = tiny(weights__encoder=path)
    params = random_params(config, "encoder")
    name, large = max(flatten(params).items(), key=lambda item: item[1].size)
    large[:] *= 1e6 / np.abs(large).max()
    exported.save(path, config, "encoder", params, {})
    assert {str(v.dtype) for v in load_file(path).values()} == {"float16", "float32"}
    again = flatten(resolve.load(config, tmp_path, "encoder")[0])
    np.testing.assert_array_equal(again[name], large)
    assert all(np.isfinite(value).all() for value in again.values())
    written = diffusers.state_dict({"params": {"a": {"bias": np.float32([7e4]), "scale": large}}})
    assert written["a.bias"].dtype == np.float32 and written["a.bias"] == 7e4
    assert diffusers.state_dict({"params": {"a": {"bias": np.ones(2)}}})["a.bias"].dtype == "f2"


def test_a_file_that_could_not_be_read_again_is_not_written(tiny, tmp_path):
    config = tiny(export__stage="score", export__format="cdsde", export__path=tmp_path / "x.pt")
    said(r"config.export.path=.*x\.pt must end in \.safetensors", exchange.export_weights, config,
         tmp_path)  # fmt: skip


@pytest.mark.parametrize("stage", ["score", "encoder"])
def test_a_card_without_a_checkpoint_is_told(tiny, tmp_path, stage):
    config = tiny(export__stage=stage, export__format="cdsde")
    said(f"needs a trained {stage} network, and there is none", exchange.export_weights, config,
         tmp_path)  # fmt: skip
    path = tmp_path / f"{stage}.safetensors"
    exported.save(path, config, stage, random_params(config, stage), {})
    config.weights[stage] = str(path)
    remedy = "trained in, or with --config.export.format=published$"
    said(f"checkpoints/{stage} has no checkpoint, and a card describes the training of one; .*"
         + (remedy if stage == "score" else "trained in$"), exchange.export_weights, config,
         tmp_path)  # fmt: skip


PUBLISHED = {"score.prediction": "eps", "score.group_channels": 1, "score.learn_sigma": True}
OTHERS = [
    ({"num_classes": 10}, "its network takes a class of 10, and the networks of cdsde take none"),
    ({"channels": 64}, "config.score.channels is 32, the file has 64"),
    ({"channel_mult": (1, 2)}, r"config.score.channel_mult is \(1,\), the file has \(1, 2\)"),
    ({"attention_factors": (1,)}, r"config.score.attention_resolutions is \(\), the file has "
     r"\(16,\) at config.data.image_size=16"),
    ({"out_channels": 3}, "config.score.learn_sigma is True, the file has False"),
    ({"use_scale_shift_norm": False}, "config.score.use_scale_shift_norm is True, the file has F"),
]  # fmt: skip


@pytest.mark.parametrize("fields, expected", OTHERS, ids=lambda x: str(x)[:30])
def test_weights_that_do_not_fit_are_told_by_keys(tiny, tmp_path, fields, expected):
    config = tiny(method="sdedit", **{k.replace(".", "__"): v for k, v in PUBLISHED.items()})
    module = build.score_module(config).clone(**fields)
    x, labels = jnp.zeros((1, 16, 16, 3)), {}
    if "num_classes" in fields:
        labels = {"y": jnp.zeros(1, jnp.int32)}
    params = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), **labels)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), params)
    path = tmp_path / "other.safetensors"
    convert.save_state_dict(path, zeros, "adm")
    config.weights.score = str(path)
    said(f"other.safetensors does not fit the config: .*{expected}", exchange.import_weights,
         config, tmp_path)  # fmt: skip
    assert not (tmp_path / "checkpoints").exists()


def test_a_classifier_of_other_domains_is_told_by_its_key(tiny, tmp_path):
    plain = {"method": "egsde", "classifier__patch_size": 1}
    three = tiny(**plain, data__domains=("blue", "yellow", "red"))
    path = tmp_path / "classifier.safetensors"
    convert.save_state_dict(path, random_params(three, "classifier"), "adm_encoder")
    config = tiny(**plain)
    config.weights.classifier = str(path)
    said(r"it knows 3 domains, and config.data.domains \(or source and target\) 2",
         exchange.import_weights, config, tmp_path)  # fmt: skip


def test_a_network_of_guided_diffusion_goes_out_with_what_its_names_do_not_tell(tiny, tmp_path):
    """It comes back as a published file with its own noise and heads."""
    plain = {"prediction": "eps", "group_channels": 1, "num_head_channels": 8}
    config = tiny(
        **{f"score__{key}": value for key, value in plain.items()},
        sde__schedule="cosine",
        export__stage="score",
        export__format="published",
    )
    params = random_params(config, "score")
    checkpoint.save_imported(tmp_path, "score", params, {})
    path = exchange.export_weights(config, tmp_path)
    opened = guided_diffusion.read(path)
    module = build.score_module(config)
    for name in ("channels", "num_head_channels", "out_channels"):
        assert opened.fields[name] == getattr(module, name), name
    assert tuple(opened.fields["attention_factors"]) == module.attention_factors
    alpha_bar = np.asarray(opened.path["time"]["alpha_bar"])
    np.testing.assert_allclose(alpha_bar, build.schedule_of(config).alpha_bar, rtol=1e-4)
    assert opened.path["output"] == "eps"


@pytest.mark.parametrize(
    "text", ["", "step,loss\n", "step,loss\n1,2\n", "what\nis this\n", "a\n1,2\n"]
)
def test_a_damaged_log_is_named(tiny, tmp_path, text, monkeypatch):
    monkeypatch.setattr(checkpoint, "newest_whole", lambda *args: 1)
    monkeypatch.setattr(checkpoint, "saved_config", lambda *args: {})
    log = tmp_path / "logs" / "score" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    said("metrics.csv is damaged, but the card needs it", exchange.card, tiny(), tmp_path, "score")
