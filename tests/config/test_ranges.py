"""Choices and ranges: of every number, text and seed."""

import re

import jax
import numpy as np
import pytest
from config_helpers import FOLDER, both_ways, from_command_line, one_sentence

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.config import command_line
from cdsde.config.keys import KEYS

CHOICES = [
    ("method", "cyclegan", "contrastive_sde, egsde, sdedit, ilvr"),
    ("train.stage", "unet", "score, encoder, classifier"),
    ("dtype", "float16", "float32, bfloat16"),
    ("data.filter", "nearest", "lanczos, bicubic, bilinear"),
    ("sde.schedule", "sigmoid", "linear, cosine"),
    ("score.arch", "dit", "adm, ddpm"),
    ("score.prediction", "x0", "eps, v"),
    ("encoder.pool", "max", "attention, adaptive"),
    ("sample.solver", "euler", "ancestral, ddim"),
    ("sample.variance", "large", "fixedsmall, fixedlarge, learned"),
    ("train.score.schedule", "linear", "constant, cosine"),
    ("egsde.domain_similarity", "l2", "cosine, neg_l2"),
    ("egsde.content_similarity", "l2", "cosine, neg_l2"),
    ("contrastive_sde.space", "pixels", "embedding, hidden, features"),
    ("train.score.optimizer", "sgd", "adam, muon"),
    ("ilvr.level", "next", "previous, same"),
    ("eval.methods", "sdedit,munit", "contrastive_sde, egsde, sdedit, ilvr"),
]


@pytest.mark.parametrize("key, value, allowed", CHOICES)
def test_a_wrong_choice_is_told_the_right_ones(key, value, allowed):
    for make in both_ways(key, value):
        with pytest.raises(ValueError, match=f"config.{key} .*choose .*") as error:
            make()
        text = str(error.value)
        assert one_sentence(text) and f"'{value.split(',')[-1]}'" in text
        assert set(allowed.split(", ")) <= set(re.findall(r"\w+", text.split("choose")[1]))


RANGES = [
    ("data.image_size", 0, "at least 1"),
    ("train.steps", 0, "at least 1"),
    ("train.batch_size", -8, "at least 1"),
    ("train.accumulate", 0, "at least 1"),
    ("train.log_every", 0, "at least 1"),
    ("train.checkpoint_every", 0, "at least 1"),
    ("train.keep", 0, "at least 1"),
    ("train.encoder.temperature", 0.0, "at least 0.0001"),
    ("sample.rounds", 0, "at least 1"),
    ("sample.batch_size", 0, "at least 1"),
    ("sample.steps", 0, "at least 1"),
    ("sample.limit", 0, "at least 1"),
    ("sample.sheet", -1, "at least 0"),
    ("eval.bootstrap", 0, "at least 1"),
    ("sample.start", 0, "must be at least 1"),
    ("sample.eta", 2.0, "at least 0 and at most 1"),
    ("sample.eta", -1.0, "at least 0 and at most 1"),
    ("train.score.ema", 2.0, "at least 0 and below 1"),
    ("train.score.ema", 1.0, "at least 0 and below 1"),
    ("train.score.ema", -1.0, "at least 0 and below 1"),
    ("train.clip_norm", -1.0, "at least 0"),
    ("train.score.warmup", -1, "at least 0"),
    ("train.score.learning_rate", -1e-4, "above 0"),
    ("train.score.learning_rate", 0.0, "above 0"),
    ("score.dropout", 1.5, "at least 0 and below 1"),
    ("score.num_head_channels", 0, "at least 1, or -1"),
    ("egsde.domain_weight", -1.0, "at least 0"),
    ("cut.layers", (-1,), "each at least 0"),
    ("edit.patches", (1, 0), "each at least 1"),
    ("latent.widths", (0.5, 64), "a tuple of whole numbers"),
    ("sample.start", 1001, "must lie in 1..1000"),
    ("sample.steps", 501, "more than the 500 noise levels below config.sample.start"),
    ("data.image_size", 66, "not a multiple of 8"),
    ("egsde.factor", 7, "a divisor of config.data.image_size=64"),
    ("train.encoder.factor", 64, "leaves at least 2 pixels"),
    ("data.source", " , ", "is empty"),
    ("data.data_dir", "/data", "which only TFDS data sets have"),
    ("data.domains", ("other",), "'source', which is not one of config.data.domains (other)"),
]


@pytest.mark.parametrize("key, value, wanted", RANGES, ids=lambda x: str(x))
def test_a_value_out_of_range_is_told_the_range(key, value, wanted):
    for make in both_ways(key, value):
        with pytest.raises(ValueError, match=re.escape(wanted)) as error:
            make()
        text = str(error.value)
        assert one_sentence(text) and f"config.{key}" in text


NUMBERS = {
    key: setting
    for key, setting in KEYS.items()
    if type(setting.default) in (int, float) or setting.default in (int, float)
}


def refused(key: str, value):
    """The sentence about a value, which is the same on the command line and in Python."""
    said = set()
    for make in both_ways(key, value):
        with pytest.raises((ValueError, command_line.UserError)) as error:
            make()
        said.add(str(error.value))
        assert one_sentence(str(error.value)) and f"config.{key}" in str(error.value)
    return said


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range_and_is_held_to_it(key):
    setting = NUMBERS[key]
    whole = int in (setting.default, type(setting.default))
    step = 1 if whole else 1e-3
    lower = setting.minimum if setting.above is None else setting.above
    upper = setting.maximum if setting.below is None else setting.below
    assert lower is not None, f"{key} has no lower limit"
    if setting.above is None:
        refused(key, lower - step)
    else:
        refused(key, float(lower))
    if upper is not None:
        refused(key, upper + step if setting.below is None else float(upper))
    refused(key, 2**63 if whole else 1e300)
    if not whole:
        for value in (float("nan"), float("inf"), float("-inf")):
            refused(key, value)


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_of_python_are_held_to_the_range_whatever_their_type(key):
    wrong = [True, False]
    if float in (NUMBERS[key].default, type(NUMBERS[key].default)):
        wrong += [np.float64("nan"), np.float64("inf"), np.float64(-1e300), 10**400]
    for value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"config.{key} is ")) as error:
            load_config(FOLDER, {key: value})
        assert one_sentence(str(error.value))


def test_a_number_of_numpy_is_taken():
    given = {"sample.solver": "ddim", "sample.eta": np.float64(0.5)}
    assert load_config(FOLDER, given).sample.eta == 0.5


def test_numbers_at_their_limits_are_taken():
    for key, setting in NUMBERS.items():
        for limit in (setting.minimum, setting.maximum):
            if limit is not None:
                assert setting.allows(limit), key
        if not isinstance(setting.default, type):
            assert setting.allows(setting.default), key


def test_tuples_of_numbers_are_held_to_their_range():
    tuples = {k: s for k, s in KEYS.items() if isinstance(s.default, tuple)}
    numbers = {k: s for k, s in tuples.items() if s.default or s.minimum is not None}
    assert "score.fourier" in numbers
    for key, setting in numbers.items():
        assert setting.minimum is not None, f"{key} has no lower limit"
        for wrong in (setting.minimum - 1, 1.5, "a", True):
            with pytest.raises(ValueError, match=f"config.{key} is .*tuple of whole numbers"):
                load_config(FOLDER, {key: (wrong,)})


@pytest.mark.parametrize("key", [key for key in KEYS if key.endswith("seed")])
def test_every_seed_is_another_one(key):
    refused(key, -1)
    refused(key, 2**32)
    refused(key, 2**40)
    seeds = [load_config(FOLDER, {key: n}) for n in (0, 1, 2**31, 2**32 - 1)]
    keys = {jax.random.key_data(jax.random.key(config_lib.get(c, key))).tobytes() for c in seeds}
    assert len(keys) == 4


NOT_TEXTS = [
    ("data.domains", "(1, 2)", "is (1, 2); it must be a tuple of texts"),
    ("data.domains", "('cat', '')", "it must be a tuple of texts"),
    ("serve.tasks", "(None,)", "it must be a tuple of texts"),
    ("edit.templates", "(3,)", "it must be a tuple of texts"),
    ("edit.templates", "('a photo',)", "has 'a photo'; each sentence has {} in place of"),
    ("edit.templates", "('{} {name}',)", "and no other braces"),
    ("edit.templates", "('{0}',)", "each sentence has {} in place of"),
    ("edit.templates", "('{',)", "each sentence has {} in place of"),
    ("edit.templates", "('{} }',)", "and no other braces"),
]


@pytest.mark.parametrize("key, value, wanted", NOT_TEXTS, ids=lambda x: str(x))
def test_tuples_of_texts(key, value, wanted):
    with pytest.raises(ValueError, match=f"^config.{key} ") as error:
        from_command_line(f"{key}={value}")
    assert wanted in str(error.value) and one_sentence(str(error.value))
