"""Every key whose value is a text, given wrong ones: an answer of at most three lines, no trace.

`python -m pytest -m campaign tests/campaign`; about ten minutes here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FOLDER, TINY, overrides, with_random_weights

from cdsde.config.keys import KEYS

pytestmark = pytest.mark.campaign
ROOT = Path(__file__).parent.parent.parent
TEXTS = [k for k, s in KEYS.items() if s.default is str or isinstance(s.default, str)]
# The program that reads a group of keys; the others are for sampling.
READERS = {"train": "train", "eval": "eval", "model": "edit", "edit": "edit", "export": "export"}
READERS |= {"serve": "serve"}
# What reads a network's weights, where the task's own method does not.
METHODS = {"encoder": "contrastive_sde", "source_score": "ddib", "cut": "cut", "fastcut": "fastcut"}
# Any text is right: names and places of what is written, and words.
FREE = ("task", "cache", "sample.output", "eval.cache", "export.path", "eval.methods", "eval.text")
FREE += ("edit.source", "edit.target", "edit.caption", "edit.negative")
# Nobody asks for these: other tasks read them, or what they would give is there.
FREE += ("weights.autoencoder", "weights.latent", "weights.vgg", "data.target", "model.captioner")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """`{kind: value}`."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "noise.bin").write_bytes(os.urandom(1000))
    return {
        "mistyped": "no such thing",
        "long": "x" * 5000,
        "a folder": str(folder),
        "a file of noise": str(folder / "noise.bin"),
        "another hub": "hf:no/such@thing",
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory, pictures, golden):
    """`{mode: arguments}` of programs that work."""
    folder = tmp_path_factory.mktemp("given")
    task = TINY | {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    task |= {"sample.start": 4, "sample.steps": 2, "train.steps": 1, "method": "egsde"}
    task = with_random_weights(folder, task, "score", "encoder", "classifier")
    edit = {"model.path": golden / "latent" / "model", "sample.input": pictures / "val" / "blue"}
    edit |= {"edit.caption": "a photo of a cat", "data.image_size": 64, "edit.steps": 2}
    edit |= {"method": "ddim", "sample.limit": 1}
    made = {mode: (FOLDER, task) for mode in ("train", "sample", "eval", "export", "serve")}
    return made | {"edit": (ROOT / "configs/edit_cat2dog.py", edit)}


@pytest.mark.parametrize("kind", ["mistyped", "long", "a folder", "a file of noise", "another hub"])
@pytest.mark.parametrize("key", TEXTS)
def test_a_wrong_text_is_told_in_three_lines(given, wrong, key, kind, tmp_path):
    mode = READERS.get(key.split(".")[0], "sample")
    file, changes = given[mode]
    if method := METHODS.get(key.split(".")[-1]):
        changes = changes | {"method": method}
    arguments = overrides(changes | {key: wrong[kind]})
    program = subprocess.run(
        [sys.executable, "-m", "cdsde.main", f"--config={file}", f"--mode={mode}", *arguments]
        + [f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    said = [line for line in program.stderr.splitlines() if not line.startswith(("I", "W"))]
    assert "Traceback" not in program.stderr
    if program.returncode:
        assert program.returncode in (1, 2) and 1 <= len(said) <= 3, program.stderr
        assert max(map(len, said)) < 6000
    else:
        assert key in FREE, program.stdout
