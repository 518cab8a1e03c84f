"""Configs, overrides, and the one sentence that every mistake in them gets."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.config import checks, command_line
from cdsde.config.keys import KEYS
from cdsde.diffusion.solvers import SOLVERS
from cdsde.networks import build
from cdsde.weights import knowledge

# ml_collections loads config files in a way that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
FOLDER = str(next(path for path in CONFIGS if path.stem == "folder"))


def parse(argv: list[str]):
    """The config as `cdsde.main` makes it: overrides looked at, parsed by absl, validated."""
    values = flags.FlagValues()
    command_line.parse_into(values, argv)
    checks.validate(values.config)
    return values.config


def from_command_line(*overrides: str, path: str = FOLDER):
    return parse(["main", f"--config={path}", *(f"--config.{o}" for o in overrides)])


def both_ways(key: str, value):
    """Setting a key on the command line, and in Python."""
    return (
        lambda: from_command_line(f"{key}={value}"),
        lambda: load_config(FOLDER, {key: value}),
    )


def one_sentence(text: str) -> bool:
    return bool(text) and "\n" not in text and "Traceback" not in text


# --- the configs of the repository ---


def test_every_solver_can_be_chosen():
    assert KEYS["sample.solver"].choices == tuple(SOLVERS)


def test_the_promised_tasks_are_there():
    promised = {"twemoji2fluent", "noto2fluent", "fluent2twemoji", "cat2dog", "wild2dog"}
    assert promised | {"male2female", "folder"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_says_how_to_run_it(path):
    edits = load_config(path).method in config_lib.EDITORS
    for mode in ("edit",) if edits else ("train", "sample"):
        assert f"--mode={mode}" in path.read_text()
    for method in config_lib.METHODS:  # each must start from the same file, by one override
        assert load_config(path, {"method": method}).method == method


def test_no_two_tasks_share_a_work_folder():
    tasks = [load_config(path).task for path in CONFIGS]
    assert len(set(tasks)) == len(tasks)


def networks_of_configs():
    """Every different network that the configs describe: `(config, stage)`."""
    seen = {}
    for path in CONFIGS:
        config = load_config(path)
        for stage in config_lib.STAGES:
            if stage != "fastcut":  # CUT's
                what = knowledge.architecture(config, stage)
                seen.setdefault(json.dumps([stage, what], sort_keys=True), (config, stage))
    return seen.values()


@pytest.mark.slow
def test_every_config_builds_its_networks():
    # Shapes alone: the classes check that the fields fit each other, and the input the network.
    for config, stage in networks_of_configs():
        params = jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))
        assert build.count_parameters(params) > 5e5, (config.task, stage)


# --- overrides that work ---

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


# --- mistakes: key, text on the command line, value in Python, what the sentence says ---

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
    ("data.image_size", 66, "not a multiple of 4"),
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
    assert load_config(FOLDER, {"sample.eta": np.float64(0.5)}).sample.eta == 0.5


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


def test_the_nearest_names():
    keys = config_lib.key_paths(config_lib.base())
    assert config_lib.nearest("train.batchsize", keys).startswith("train.batch_size")
    assert "sample.start" in config_lib.nearest("sample.strat", keys)
    assert config_lib.nearest("x", ["a", "b"], most=1).count(",") == 0


# --- config files ---


def test_a_config_file_that_is_not_there():
    missing = str(Path(FOLDER).with_name("twemoji2fluant.py"))
    with pytest.raises(
        command_line.UserError, match="is not a file; there are .*twemoji2fluent.py"
    ):
        from_command_line(path=missing)
    with pytest.raises(ValueError, match="twemoji2fluant.py' is not a file; there are .*fluent.py"):
        load_config(missing)
    with pytest.raises(
        command_line.UserError, match="'nowhere/x.py' is not a file; there are afhq64, cat2dog, "
    ):
        from_command_line(path="nowhere/x.py")


BROKEN = {
    "syntax": ("def get_config(:\n", "broken.py fails with SyntaxError: .*line 1"),
    "name": ("def get_config():\n    return bse()\n", "line 2, fails with NameError: .*'bse'"),
    "updated key": (
        "from cdsde import config\ndef get_config():\n    c = config.base()\n"
        "    c.data.update(imagesize=3)\n    return c\n",
        "line 4, sets 'imagesize', which no config has; the nearest are data.image_size,",
    ),
    "key error": ("def get_config():\n    return {}['size']\n", "fails with KeyError: 'size'"),
    "no function": ("x = 1\n", "has no get_config"),
    "mistyped key": (
        "from cdsde import config\ndef get_config():\n    c = config.base()\n"
        "    c.train.stepps = 3\n    return c\n",
        "line 4, sets 'stepps', which no config has; the nearest are .*\\.steps",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_config_file_that_fails_is_named_with_the_reason(what, tmp_path):
    text, expected = BROKEN[what]
    file = tmp_path / "broken.py"
    file.write_text(text)
    for make in (lambda: from_command_line(path=str(file)), lambda: load_config(file)):
        with pytest.raises((command_line.UserError, ValueError), match=expected) as error:
            make()
        assert one_sentence(str(error.value)) and str(file) in str(error.value)


def test_parse_prints_one_line_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.parse(["main", f"--config={FOLDER}", "--config.train.stepz=3"])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "" and re.fullmatch(r"error: config has no key .*\n", shown.err)


@pytest.mark.parametrize("method", ["sdedit", "ilvr", "cut"])
def test_guidance_is_left_out_only_where_there_is_some(method):
    changes = {"sample.guide_every": 2}
    config = CONFIGS[0].parent / "twemoji2fluent.py"
    assert load_config(config, {"method": "egsde", **changes}).sample.guide_every == 2
    with pytest.raises(ValueError, match=f"guide_every is 2, and config.method '{method}'"):
        load_config(config, {"method": method, **changes})


EDIT = str(CONFIGS[0].parent / "edit_cat2dog.py")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"edit.steps": 1}, "config.edit.steps to at least 3"),
        ({"edit.steps": 2}, "config.edit.steps to at least 3"),
        ({"edit.inversion_steps": 100}, "config.edit.inversion_steps is 100, .*set it to None"),
        ({"method": "pnp"}, "config.method is 'pnp'.* choose next or current"),
    ],
)
def test_p2p0_is_refused_where_nothing_is_inverted(changes, wanted):
    assert load_config(EDIT, {"edit.inversion": "p2p0"}).edit.steps == 50
    with pytest.raises(ValueError, match=wanted) as error:
        load_config(EDIT, {"edit.inversion": "p2p0", **changes})
    assert one_sentence(str(error.value)) and "p2p0" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"method": "pnp", "edit.inversion": "null_text"}, "'pnp', which does not use its texts"),
        ({"method": "ledits", "edit.inversion": "current"}, "of its own; set it to next"),
        ({"method": "edit_friendly", "edit.inversion_steps": 50}, "of its own; set it to None"),
        ({"method": "ledits", "edit.steps": 1, "edit.skip": 0.9}, "leaves out all of the 1 steps"),
        ({"method": "dds", "edit.inversion_steps": 50}, "'dds', which inverts nothing; set it"),
        ({"method": "cds", "edit.inversion_steps": 7}, "'cds', which inverts nothing; set it"),
        ({"method": "cds", "edit.patches": ()}, "'cds', which contrasts patches; name their sides"),
        ({"edit.patches": ()}, "'pix2pix_zerocon', which contrasts patches; name their sides"),
    ],
)
def test_an_inversion_that_an_editor_does_not_use_is_refused(changes, wanted):
    with pytest.raises(ValueError, match=re.escape(wanted)) as error:
        load_config(EDIT, changes)
    assert one_sentence(str(error.value))


def test_an_editor_brings_the_steps_with_which_it_is_published():
    def steps(**given):
        changes = {key.replace("__", "."): value for key, value in given.items()}
        e = load_config(EDIT, changes).edit
        return e.steps, e.skip, e.attention

    assert steps(method="edit_friendly") == (100, 0.36, 0.5)
    assert steps(method="edit_friendly", edit__steps=20) == (20, 0.36, 0.5)
    assert steps(method="p2p")[::2] == (50, 0.4) and steps(method="pnp")[::2] == (50, 0.5)
    assert steps()[0] == 50


# --- None unsets; an empty text is refused where it means nothing ---


def values_given():
    """A value other than its default for every key that can be unset."""
    text = {int: "3", float: "0.5", str: "given", bool: "true"}
    for key, setting in KEYS.items():
        if isinstance(setting.default, type):
            yield key, text[setting.default], None
        elif config_lib.may_be_empty(key):
            given = setting.choices[-1] if setting.choices else "given"
            yield key, given if isinstance(setting.default, str) else "('a',)", setting.default * 0


def test_none_unsets_every_key_that_may_have_no_value():
    cases = list(values_given())
    named = {"sample.steps", "sample.input", "weights.score", "eval.reference", "data.domains"}
    assert named | {"cut.identity", "train.stage", "edit.negative"} <= {key for key, *_ in cases}
    for key, text, nothing in cases:
        values = flags.FlagValues()
        argv = [f"--config.{key}={text}", f"--config.{key}=None"]
        command_line.parse_into(values, ["main", f"--config={FOLDER}", *argv])
        assert config_lib.get(values.config, key) == nothing, key
        assert command_line.split_overrides(argv) == ([], {key: None})
        # The last override of a key holds.
        values = flags.FlagValues()
        command_line.parse_into(values, ["main", f"--config={FOLDER}", *argv[::-1]])
        assert config_lib.get(values.config, key) not in (nothing, None), key
    unset = load_config(FOLDER, {key: None for key, *_ in cases})
    assert [config_lib.get(unset, key) for key, *_ in cases] == [nothing for *_, nothing in cases]
    config = parse(["main", f"--config={FOLDER}", "--config.sample.steps", "None"])
    assert config.sample.steps is None


def test_a_key_that_is_unset_is_given():
    """It is not set again by a method that brings its own sampling."""
    assert from_command_line("method=sddm").sample.steps == 100
    assert from_command_line("method=sddm", "sample.steps=None").sample.steps is None
    config = load_config(FOLDER, {"method": "sddm", "sample.steps": None})
    assert config.sample.steps is None


ALWAYS = ("data.root", "sample.seed", "data.flip", "score.channel_mult", "method", "sample.split")


@pytest.mark.parametrize("key", ALWAYS)
def test_a_key_that_always_has_a_value_cannot_be_unset(key, tmp_path):
    expected = f"config.{key} always has a value, so that None cannot unset it; give it a value"
    with pytest.raises(command_line.UserError, match=expected) as error:
        from_command_line(f"{key}=None")
    assert one_sentence(str(error.value))
    with pytest.raises(ValueError, match=expected):
        load_config(FOLDER, {key: None})
    file = tmp_path / "own.py"
    file.write_text(
        "from cdsde import config\ndef get_config():\n    c = config.base()\n"
        f"    c.{key} = None\n    return c\n"
    )
    with pytest.raises(ValueError, match=expected):
        load_config(file)


def test_an_empty_text_is_refused_where_it_means_nothing():
    for key, setting in KEYS.items():
        is_text = setting.default is str or isinstance(setting.default, str)
        if not is_text or setting.choices or config_lib.may_be_empty(key):
            continue
        remedy = "None to unset it" if setting.default is str else "leave it out"
        for make in both_ways(key, ""):
            with pytest.raises(ValueError, match=f"config.{key} is empty; .*{remedy}"):
                make()
    assert load_config(FOLDER, {"edit.negative": ""}).edit.negative == ""


def test_a_wrong_type_is_told_that_none_unsets():
    with pytest.raises(command_line.UserError, match="'none' is not; None unsets it"):
        from_command_line("sample.steps=none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval.clip": "clip"}, "eval.clip is clip, which measures edits by words"),
        ({"eval.masks": "m"}, "eval.masks is m, which measures edits by words"),
        ({"eval.inception": "i.pth", "eval.reference": ""}, "FID needs a reference"),
        ({"method": "pnp", "eval.inception": "i.pth"}, "inception is i.pth, which measures transl"),
        ({"method": "pnp", "eval.text": "a cat"}, "eval.text is 'a cat', which the CLIP score"),
    ],
)
def test_weights_of_metrics_that_measure_nothing_are_refused(changes, words):
    config = load_config(FOLDER, changes)
    with pytest.raises(ValueError, match=words) as error:
        checks.check_measures(config)
    assert one_sentence(str(error.value))
    checks.check_measures(load_config(FOLDER))


@pytest.mark.parametrize("line", ["c.sample = None", "c.sample = 3", "del c.sample", "c = None"])
def test_a_config_file_without_a_group_is_told(line, tmp_path):
    file = tmp_path / "own.py"
    lines = ["c = config.base()", line, "return c"]
    body = "".join(f"    {text}\n" for text in lines)
    file.write_text(f"from cdsde import config\ndef get_config():\n{body}")
    with pytest.raises(ValueError, match=r"own\.py") as error:
        load_config(file)
    assert one_sentence(str(error.value)), error.value
