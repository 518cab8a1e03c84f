"""Overrides, and the one sentence that every mistake in them gets."""

import re

import pytest
from absl import flags
from config_helpers import FOLDER, from_command_line, one_sentence, parse

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.config import command_line

OVERRIDES = [
    ("method", "egsde", "egsde"),
    ("data.root", "my pictures", "my pictures"),
    ("data.source", "cat", "cat"),
    ("data.source", "cat,wild", "cat,wild"),
    ("data.target", "dog", "dog"),
    ("data.image_size", "32", 32),
    ("data.domains", "('target','source','third')", ("target", "source", "third")),
    ("train.stage", "encoder", "encoder"),
    ("train.steps", "7", 7),
    ("train.batch_size", "24", 24),
    ("train.seed", "3", 3),
    ("train.score.learning_rate", "1e-5", 1e-5),
    ("train.score.learning_rate", "1", 1.0),
    ("sample.input", "a folder/of mine", "a folder/of mine"),
    ("sample.output", "out", "out"),
    ("sample.steps", "12", 12),
    ("sample.start", "400", 400),
    ("sample.seed", "5", 5),
    ("sample.batch_size", "2", 2),
    ("sample.limit", "3", 3),
    ("sample.clip", "false", False),
    ("score.channel_mult", "(1,2)", (1, 2)),
    ("score.channel_mult", "(2,)", (2,)),
    ("score.attention_resolutions", "()", ()),
    ("weights.score", "shipped:x", "shipped:x"),
]


@pytest.mark.parametrize("key, text, value", OVERRIDES, ids=lambda x: str(x))
def test_an_override_reaches_its_key(key, text, value):
    got = config_lib.get(from_command_line(f"{key}={text}"), key)
    assert got == value and type(got) is type(value)
    assert config_lib.get(load_config(FOLDER, {key: value}), key) == value


def test_a_value_may_stand_apart_and_a_switch_alone():
    config = parse(["main", "--config", FOLDER, "--config.train.steps", "9", "--config.remat"])
    assert config.train.steps == 9 and config.remat is True


def test_steps_and_batch_size_override_every_stage_and_only_when_given():
    plain, changed = load_config(FOLDER), load_config(FOLDER, {"train.steps": 7})
    for stage in config_lib.STAGES:
        own, short = (config_lib.stage_training(c, stage) for c in (plain, changed))
        assert own.steps > short.steps == 7
        assert short.batch_size == own.batch_size
    small = load_config(FOLDER, {"train.batch_size": 2})
    assert config_lib.stage_training(small, "score").batch_size == 2


def test_the_start_is_the_methods_own_unless_given():
    own = load_config(FOLDER, {"method": "ilvr"})
    assert config_lib.start_index(own) == own.ilvr.start != own.sdedit.start
    assert config_lib.start_index(load_config(FOLDER, {"sample.start": 123})) == 123


def test_domains_follow_sources_and_target_unless_given():
    config = load_config(FOLDER, {"data.source": "cat, wild", "data.target": "dog"})
    assert config_lib.sources(config) == ("cat", "wild")
    assert config_lib.domains(config) == ("cat", "wild", "dog")
    named = load_config(FOLDER, {"data.domains": ("target", "source")})
    assert config_lib.domains(named) == ("target", "source")


def test_a_path_serves_as_text_in_python(tmp_path):
    assert load_config(FOLDER, {"sample.input": tmp_path}).sample.input == str(tmp_path)


def test_an_argument_after_a_colon_reaches_the_config(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        "from cdsde import config\ndef get_config(size):\n"
        "    c = config.base()\n    c.data.image_size = int(size)\n    return c\n"
    )
    assert load_config(f"{file}:64").data.image_size == 64


WRONG_KEYS = [
    ("train.stepz", "train.steps"),
    ("batchsize", "train.batch_size"),
    ("sample.sed", "sample.seed"),
    ("data.rooot", "data.root"),
    ("Method", "method"),
    ("smaple.steps", "sample.steps"),
]


@pytest.mark.parametrize("key, meant", WRONG_KEYS)
def test_an_unknown_key_is_answered_with_the_nearest(key, meant):
    texts = []
    with pytest.raises(command_line.UserError, match=f"no key '{key}'") as error:
        from_command_line(f"{key}=1")
    texts.append(str(error.value))
    with pytest.raises(ValueError, match=f"no key '{key}'") as error:
        load_config(FOLDER, {key: 1})
    texts.append(str(error.value))
    for text in texts:
        assert one_sentence(text) and meant in re.split(r"nearest are ", text)[1].split(", ")


def test_a_group_is_not_a_key():
    expected = "config.sample is a group of keys; set one of sample.batch_size"
    with pytest.raises(command_line.UserError, match=expected) as error:
        from_command_line("sample=3")
    assert one_sentence(str(error.value))
    with pytest.raises(ValueError, match=expected):
        load_config(FOLDER, {"sample": 3})
    with pytest.raises(command_line.UserError, match=r"of train\.score\.\w+, train\.score\.\w+"):
        from_command_line("train.score=3")


WRONG_TYPES = [
    ("train.steps", "many", "many", "a whole number"),
    ("train.steps", "2.5", 2.5, "a whole number"),
    ("train.score.learning_rate", "fast", "fast", "a number"),
    ("sample.clip", "yes", "yes", "true or false"),
    ("score.channel_mult", "one", "one", "a tuple such as '(1, 2)'"),
    ("score.channel_mult", "(1, 2", 3, "a tuple such as '(1, 2)'"),
    ("score.channel_mult", "('a', 'b')", ("a", "b"), "a tuple of whole numbers"),
    ("encoder.channel_mult", "()", (), "a tuple of whole numbers"),
    ("score.attention_resolutions", "(0,)", (0,), "a tuple of whole numbers"),
]


@pytest.mark.parametrize("key, text, value, wanted", WRONG_TYPES, ids=lambda x: str(x))
def test_a_value_of_the_wrong_type_is_told_what_is_wanted(key, text, value, wanted):
    expected = f"config.{re.escape(key)} is .*{re.escape(wanted)}"
    with pytest.raises((command_line.UserError, ValueError), match=expected) as error:
        from_command_line(f"{key}={text}")
    assert one_sentence(str(error.value))
    with pytest.raises(ValueError, match=expected) as error:
        load_config(FOLDER, {key: value})
    assert one_sentence(str(error.value))


def test_a_text_is_wanted_where_a_number_is_given():
    with pytest.raises(ValueError, match="config.sample.input is a text, and '3' is not"):
        load_config(FOLDER, {"sample.input": 3})


def test_a_value_that_is_left_out():
    argv = ["main", f"--config={FOLDER}", "--config.train.steps"]
    with pytest.raises(command_line.UserError, match="needs a value: --config.train.steps=VALUE"):
        parse(argv)


def test_the_nearest_names():
    keys = config_lib.key_paths(config_lib.base())
    assert config_lib.nearest("train.batchsize", keys).startswith("train.batch_size")
    assert "sample.start" in config_lib.nearest("sample.strat", keys)
    assert config_lib.nearest("x", ["a", "b"], most=1).count(",") == 0


def test_parse_prints_one_line_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.parse(["main", f"--config={FOLDER}", "--config.train.stepz=3"])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "" and re.fullmatch(r"error: config has no key .*\n", shown.err)


# --- methods that read the source itself ---

CYCLE = {"method": "cyclediffusion", "sample.solver": "ancestral"}
SOURCES = [
    ({**CYCLE, "sample.variance": "fixedlarge"}, "sample.variance is 'fixedlarge'"),
    ({**CYCLE, "sample.rounds": 2}, "cyclediffusion has one round"),
    ({"method": "ddib", "sample.rounds": 2}, "ddib has one round"),
    ({"method": "sddm", "sample.rounds": 2}, "sddm has one round"),
    ({"method": "ddib", "sample.spacing": "trailing"}, "set --config.sample.spacing=index"),
    ({**CYCLE, "sample.spacing": "trailing"}, "set --config.sample.spacing=index"),
    ({"method": "ddib", "ddib.exact": True, "sample.clip": True}, "set --config.sample.clip=False"),
]


@pytest.mark.parametrize("changes, words", SOURCES)
def test_what_would_lose_the_source_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        load_config("twemoji2fluent", changes)


# --- overrides without an effect ---

UNUSED = [
    ("cat2dog", {"sample.eta": 0.5}, "config.sample.solver is 'ancestral'"),
    ("twemoji2fluent", {"sample.variance": "fixedlarge"}, "config.sample.solver is 'dpmpp_2m'"),
    ("twemoji2fluent", {"method": "cut", "sample.start": 90}, "config.method is 'cut'"),
    ("twemoji2fluent", {"method": "cut", "sample.rounds": 3}, "config.method is 'cut'"),
    ("edit_cat2dog", {"method": "ddim", "edit.skip": 0.2}, "config.method is 'ddim'"),
    ("edit_cat2dog", {"method": "pnp", "edit.iterations": 9}, "config.method is 'pnp'"),
    ("edit_cat2dog", {"method": "dds", "edit.attention": 0.1}, "config.method is 'dds'"),
    (
        "twemoji2fluent",
        {"train.score.optimizer": "adam", "train.score.muon_rate": 0.1},
        "config.train.score.optimizer is 'adam'",
    ),
    (
        "twemoji2fluent",
        {"train.score.levels": "index", "train.score.log_snr_mean": 1.0},
        "config.train.score.levels is 'index'",
    ),
    ("twemoji2fluent", {"score.num_heads": 2}, "config.score.num_head_channels is 32"),
    ("gothic2mincho", {"method": "sdedit", "ddib.refine": 300}, "config.method is 'sdedit'"),
    ("twemoji2fluent", {"method": "cut", "egsde.start": 300}, "config.method is 'cut'"),
]


@pytest.mark.parametrize("path, changes, reason", UNUSED)
def test_an_override_without_effect_is_refused(path, changes, reason):
    key, value = list(changes.items())[-1]
    with pytest.raises(command_line.UserError) as error:
        from_command_line(*(f"{k}={v}" for k, v in changes.items()), path=path)
    wanted = f"config.{key} is {value}, which has no effect where {reason}; leave it out"
    assert str(error.value) == wanted
    load_config(path, changes)  # programs share them between methods


def test_a_key_that_one_of_several_methods_reads_may_be_given():
    for path, changes in (
        ("edit_cat2dog", {"method": "ddim", "eval.methods": "ddim,p2p", "edit.attention": 0.1}),
        ("twemoji2fluent", {"method": "cut", "eval.methods": "cut,sdedit", "sample.start": 90}),
        ("cat2dog", {"method": "sddm", "eval.methods": "cyclediffusion", "sample.eta": 0.5}),
    ):
        config = from_command_line(*(f"{k}={v}" for k, v in changes.items()), path=path)
        assert config_lib.get(config, list(changes)[-1]) == list(changes.values())[-1]


def test_naming_the_method_that_a_config_has_changes_nothing():
    for load in (
        lambda *given: load_config("pie_bench", dict(given)),
        lambda *given: from_command_line(*(f"{k}={v}" for k, v in given), path="pie_bench"),
    ):
        assert load(("method", load().method)).to_dict() == load().to_dict()
        assert load().edit.attention == 0.6
    assert load_config("edit_cat2dog", {"method": "p2p"}).edit.attention == 0.4


def test_a_home_folder_is_meant_wherever_a_path_is_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"sample.output": "~/out", "eval.cache": "~/cache", "weights.score": "~/a.pt"}
    for config in (
        load_config(FOLDER, given),
        from_command_line(*(f"{k}={v}" for k, v in given.items())),
    ):
        assert config.sample.output == "/home/me/out" and config.eval.cache == "/home/me/cache"
        assert config.weights.score == "/home/me/a.pt"


def test_what_a_page_or_a_sheet_reads_may_be_given():
    """They translate by SDEdit, whatever the config's method."""
    values = flags.FlagValues()
    flags.DEFINE_string("mode", None, "", values)
    argv = ["main", "--config=twemoji2fluent_cut", "--config.sample.steps=10"]
    argv += ["--config.egsde.start=300"]
    for mode in ("serve", "train"):
        command_line.parse_into(values, [*argv, f"--mode={mode}"])
        assert values.config.sample.steps == 10
        values = flags.FlagValues()
        flags.DEFINE_string("mode", None, "", values)
    with pytest.raises(command_line.UserError, match="which has no effect where config.method"):
        command_line.parse_into(values, [*argv, "--mode=sample"])
