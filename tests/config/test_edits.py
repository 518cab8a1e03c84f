"""Keys of edits and of evaluations that have no effect are refused."""

import re

import pytest
from config_helpers import CONFIGS, FOLDER, one_sentence

from cdsde import load_config
from cdsde.config import checks


@pytest.mark.parametrize("method", ["sdedit", "ilvr", "cut"])
@pytest.mark.parametrize(("key", "value"), [("guide_every", 2), ("guide_levels", (100, 200))])
def test_guidance_is_left_out_only_where_there_is_some(method, key, value):
    changes = {f"sample.{key}": value}
    config = CONFIGS[0].parent / "twemoji2fluent.py"
    assert load_config(config, {"method": "egsde", **changes}).sample[key] == value
    with pytest.raises(ValueError, match=f"{key} is .*, and config.method '{method}'"):
        load_config(config, {"method": method, **changes})


@pytest.mark.parametrize("levels", [(200,), (200, 100), (100, 100), (1, 2, 3)])
def test_levels_that_are_guided_are_an_interval(levels):
    with pytest.raises(ValueError, match="guide_levels is .*; give two numbers") as error:
        load_config("twemoji2fluent", {"method": "egsde", "sample.guide_levels": levels})
    assert one_sentence(str(error.value))


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
