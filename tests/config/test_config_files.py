"""The configs of the repository, and files that fail."""

import json
from pathlib import Path

import jax
import pytest
from config_helpers import CONFIGS, FOLDER, from_command_line, one_sentence

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.config import command_line
from cdsde.config.keys import KEYS
from cdsde.diffusion.solvers import SOLVERS
from cdsde.networks import build
from cdsde.weights import knowledge


def test_every_solver_can_be_chosen():
    assert KEYS["sample.solver"].choices == tuple(SOLVERS)


def test_the_promised_tasks_are_there():
    promised = {"twemoji2fluent", "noto2fluent", "fluent2twemoji", "cat2dog", "wild2dog"}
    live = {
        "dog2cat",
        "wild2cat",
        "face2celeba",
        "afhq64_cat2dog",
        "afhq64_wild2dog",
        "imagenet_dit",
    }
    assert promised | live | {"male2female", "folder"} <= {path.stem for path in CONFIGS}
    for path in (path for path in CONFIGS if path.stem in live):  # cost, and what was not run
        text = path.read_text()
        assert ("TFLOP" in text or "what it costs" in text) and "Not run:" in text, path


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


def test_a_config_file_that_is_not_there():
    missing = str(Path(FOLDER).with_name("twemoji2fluant.py"))
    with pytest.raises(
        command_line.UserError, match="is not a file; there are .*twemoji2fluent.py"
    ):
        from_command_line(path=missing)
    with pytest.raises(ValueError, match="twemoji2fluant.py' is not a file; there are .*fluent.py"):
        load_config(missing)
    with pytest.raises(
        command_line.UserError,
        match="'nowhere/x.py' is not a file; there are afhq64_cat2dog, afhq64_wild2dog, cat2dog, ",
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


@pytest.mark.parametrize("line", ["c.sample = None", "c.sample = 3", "del c.sample", "c = None"])
def test_a_config_file_without_a_group_is_told(line, tmp_path):
    file = tmp_path / "own.py"
    lines = ["c = config.base()", line, "return c"]
    body = "".join(f"    {text}\n" for text in lines)
    file.write_text(f"from cdsde import config\ndef get_config():\n{body}")
    with pytest.raises(ValueError, match=r"own\.py") as error:
        load_config(file)
    assert one_sentence(str(error.value)), error.value
