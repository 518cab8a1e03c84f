"""None unsets; an empty text is refused where it means nothing."""

import pytest
from absl import flags
from config_helpers import FOLDER, both_ways, from_command_line, one_sentence, parse

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.config import command_line, unused
from cdsde.config.keys import KEYS


def values_given():
    """A value other than its default for every key that can be unset."""
    text = {int: "3", float: "0.5", str: "given", bool: "true"}
    for key, setting in KEYS.items():
        if isinstance(setting.default, type):
            yield key, setting.choices[-1] if setting.choices else text[setting.default], None
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
        own = ["main", f"--config={FOLDER}"]
        own += [f"--config.method={method}" for method in unused.READERS.get(key, ())[:1]]
        own += ["--config.sample.solver=ddim"] if key == "sample.eta" else []
        command_line.parse_into(values, [*own, *argv])
        assert config_lib.get(values.config, key) == nothing, key
        assert command_line.split_overrides(argv) == ([], {key: None})
        # The last override of a key holds.
        values = flags.FlagValues()
        command_line.parse_into(values, [*own, *argv[::-1]])
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
