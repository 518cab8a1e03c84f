"""Widths, heads and sides of a network that do not fit each other are told by key."""

import re
from pathlib import Path

import jax
import pytest
from absl import flags
from helpers import FOLDER, one_sentence

from cdsde import load_config
from cdsde.config import command_line, fitting
from cdsde.networks import build

WORDS = Path(FOLDER).with_name("emoji_words.py")
METHODS = {"score": "sdedit", "encoder": "contrastive_sde", "classifier": "egsde"}


def of_stage(stage: str, **changes):
    keys = {f"{stage}.{key}": value for key, value in changes.items()}
    return load_config(FOLDER, {"method": METHODS[stage], "score.dropout": 0.0} | keys)


@pytest.mark.parametrize("stage", METHODS)
@pytest.mark.parametrize("sides", [(22,), (13,), (5,), (9,), (1000,), (16, 7)])
def test_attention_at_a_side_that_no_level_has_is_refused(stage, sides):
    with pytest.raises(ValueError, match=f"config.{stage}.attention_resolutions names ") as error:
        of_stage(stage, attention_resolutions=sides)
    said = str(error.value)
    assert one_sentence(said) and f"names {sides[-1]}," in said
    assert ("sides 32, 16, 8 " if stage == "score" else "sides 16, 8 ") in said
    assert of_stage(stage, attention_resolutions=(16,))[stage].attention_resolutions == (16,)


def test_attention_is_where_it_is_asked_for():
    for sides, factors in (((), ()), ((8,), (4,)), ((32, 16), (1, 2))):
        config = of_stage("score", attention_resolutions=sides)
        assert build.score_module(config).attention_factors == factors
    # A list that a file shares between sizes of images may name a side too many.
    config = load_config(FOLDER, {"data.image_size": 128, "method": "egsde"})
    assert build.classifier_module(config).attention_factors == (4,)


def test_a_side_of_no_level_in_a_file_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    text = "from cdsde import config\ndef get_config():\n    c = config.base()\n"
    file.write_text(f"{text}    c.score.attention_resolutions = (22,)\n    return c\n")
    with pytest.raises(ValueError, match="config.score.attention_resolutions names 22, "):
        load_config(file)


WIDTHS = [
    ("score", {"channels": 1}, "config.score.channels is 1, which with channel_mult"),
    ("encoder", {"channels": 1}, "config.encoder.channels is 1, which with channel_mult"),
    ("classifier", {"channels": 1}, "config.classifier.channels is 1, which with channel_mult"),
    ("score", {"channels": 1, "channel_mult": (32,)}, "channels is 1; it must be at least 2"),
    ("score", {"channels": 1, "channel_mult": (32,), "arch": "ddpm"}, "a layer of 1 channels"),
    ("score", {"channels": 36}, "a layer of 144 channels, and config.score.group_channels=4"),
    ("score", {"num_head_channels": 48}, "num_head_channels is 48, which does not divide the 128"),
    ("score", {"num_head_channels": -1, "num_heads": 3}, "config.score.num_heads is 3, which"),
    ("encoder", {"num_head_channels": 48}, "num_head_channels is 48, which does not divide the"),
    (
        "classifier",
        {"num_head_channels": -1, "pool": "attention"},
        "config.classifier.num_head_channels is -1, and config.classifier.pool 'attention'",
    ),
]


@pytest.mark.parametrize(("stage", "changes", "wanted"), WIDTHS)
def test_widths_that_do_not_fit_are_told_by_key(stage, changes, wanted):
    with pytest.raises(ValueError, match=re.escape(wanted)) as error:
        of_stage(stage, **changes)
    assert one_sentence(str(error.value))


def test_the_widths_are_those_of_the_network():
    for stage, arch in (("score", "adm"), ("score", "ddpm"), ("encoder", ""), ("classifier", "")):
        changes = {"channels": 32, "channel_mult": (1, 3), "num_res_blocks": 2}
        changes |= {"arch": arch} if arch else {}
        config = of_stage(stage, **changes)
        shapes = jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))
        flat = jax.tree_util.tree_leaves_with_path(shapes)
        scales = {leaf.shape[0] for path, leaf in flat if path[-1].key == "scale"}
        assert set(fitting._normalised(config[stage], arch == "ddpm", stage == "score")) == scales


@pytest.mark.parametrize("stage", ["autoencoder", "latent"])
@pytest.mark.parametrize("widths", [(), (1,), (7,), (3, 5), (16, 1000)])
def test_widths_of_latent_models_are_told_by_key(stage, widths):
    if (stage, widths) == ("autoencoder", (16, 1000)):
        widths = (16, 1001)
    changes = {"train.stage": stage, f"{stage}.widths": widths}
    expected = rf"^config.{stage}.widths is {re.escape(str(widths))}; it must be a tuple of mult"
    with pytest.raises(ValueError, match=expected) as error:
        load_config(WORDS, changes)
    assert one_sentence(str(error.value))
    config = load_config(WORDS)
    config[stage].widths = widths  # as without a stage, which validation does not look at
    with pytest.raises(ValueError, match=expected):
        jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("latent.heads", 5, "config.latent.heads is 5, which does not divide each of"),
        ("latent.text_width", 6, "config.latent.text_width is 6; it must be a multiple of 4"),
        ("data.image_size", 24, "config.data.image_size is 24, not a multiple of 16 as"),
        ("autoencoder.widths", (8,) * 12, "config.data.image_size is 64, not a multiple of 8192"),
    ],
)
def test_latent_models_that_do_not_fit_are_told_by_key(key, value, wanted):
    with pytest.raises(ValueError, match=re.escape(wanted)) as error:
        load_config(WORDS, {"train.stage": "latent", key: value})
    assert one_sentence(str(error.value))


DDPM = {"arch": "ddpm", "channels": 32, "learn_sigma": False}
ADM_ONLY = [("num_head_channels", 16), ("num_heads", 8), ("resblock_updown", False)]
ADM_ONLY += [("use_scale_shift_norm", False), ("new_attention_order", True), ("group_channels", 2)]


@pytest.mark.parametrize(("key", "value"), ADM_ONLY)
def test_keys_that_the_network_of_ddpm_does_not_have_are_refused(key, value):
    expected = f"config.score.{key} is {value}, and config.score.arch 'ddpm', a network without it"
    with pytest.raises(ValueError, match=expected) as error:
        of_stage("score", **DDPM, **{key: value})
    assert one_sentence(str(error.value))
    argv = [f"--config.score.{k}={v}" for k, v in (*DDPM.items(), (key, value))]
    with pytest.raises(command_line.UserError, match=expected):
        command_line.parse_into(flags.FlagValues(), ["main", f"--config={FOLDER}", *argv])
    # What a config file shares between architectures, and the keys that count, are taken.
    assert of_stage("score", **DDPM, fourier=(2,), conv_resample=True).score.arch == "ddpm"
    counts = {"num_head_channels": -1} if key == "num_heads" else {}
    assert of_stage("score", **counts, **{key: value})
