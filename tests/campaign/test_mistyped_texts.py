"""Every key whose value is a text, given wrong ones: an answer that names it, and no trace.

The programs are such that each reads its key: with translations to evaluate, edits, and a network
that can be exported. `python -m pytest -m campaign tests/campaign`; half an hour here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FOLDER, TINY, overrides, with_random_weights

from cdsde.config.keys import GANS, KEYS

pytestmark = pytest.mark.campaign
ROOT = Path(__file__).parent.parent.parent
TEXTS = [k for k, s in KEYS.items() if s.default is str or isinstance(s.default, str)]
# The program that reads a group of keys; the others are for sampling.
READERS = {"train": "train", "eval": "eval", "model": "edit", "edit": "edit", "export": "export"}
READERS |= {"serve": "serve"}
# Keys of `eval` that are for edits.
OF_EDITS = ("eval.clip", "eval.text", "eval.dino", "eval.masks")
READERS |= dict.fromkeys(OF_EDITS, "eval of edits")
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
    (folder / "empty").mkdir()
    return {
        "mistyped": "no such thing",
        "long": "x" * 5000,
        "a folder": str(folder / "empty"),
        "a file of noise": str(folder / "noise.bin"),
        "another hub": "hf:no/such@thing",
    }


def run(mode: str, file, changes: dict, workdir, cwd) -> subprocess.CompletedProcess:
    arguments = [f"--config={file}", f"--mode={mode}", *overrides(changes), f"--workdir={workdir}"]
    return subprocess.run(
        [sys.executable, "-m", "cdsde.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory, pictures, golden):
    """`{reader: (mode, config file, changes, work folder to start from)}` of programs that work."""
    folder = tmp_path_factory.mktemp("given")
    task = TINY | {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    task |= {"sample.start": 4, "sample.steps": 2, "train.steps": 1, "method": "egsde"}
    task |= {"sample.split": "train", "sample.limit": 4}  # the fewest that realism takes
    published = {"score.group_channels": 1, "score.prediction": "eps"}
    (folder / "exported").mkdir()
    exported = with_random_weights(folder / "exported", task | published, "score")
    task = with_random_weights(folder, task, "score", "encoder", "classifier")
    edit = {"model.path": golden / "latent" / "model", "sample.input": pictures / "val" / "blue"}
    edit |= {"edit.caption": "a photo of a cat", "data.image_size": 64, "edit.steps": 2}
    edit |= {"method": "ddim", "sample.limit": 1}
    words = ROOT / "configs/edit_cat2dog.py"
    made = {mode: (mode, FOLDER, task, None) for mode in ("train", "sample", "serve")}
    made |= {"export": ("export", FOLDER, exported, None), "edit": ("edit", words, edit, None)}
    made["eval"] = ("eval", FOLDER, task, folder / "translated")
    made["eval of edits"] = ("eval", words, edit, folder / "edited")
    for mode, reader in (("sample", "eval"), ("edit", "eval of edits")):
        _, file, changes, workdir = made[reader]
        done = run(mode, file, changes, workdir, folder)
        assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("reader", ["export", "eval", "eval of edits"])
def test_the_programs_work_where_nothing_is_wrong(given, reader, tmp_path):
    """So that each of the wrong texts is what is refused."""
    mode, file, changes, before = given[reader]
    done = run(mode, file, changes, started(before, tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr


def started(before, tmp_path) -> Path:
    """A work folder like `before`."""
    workdir = tmp_path / "work"
    return shutil.copytree(before, workdir) if before else workdir


def names(said: str, key: str, value: str) -> bool:
    """Whether an answer names the key, or its value, which may be cut off."""
    return key in said or value.removeprefix("hf:").split("@")[0][:40] in said


@pytest.mark.parametrize("kind", ["mistyped", "long", "a folder", "a file of noise", "another hub"])
@pytest.mark.parametrize("key", TEXTS)
def test_a_wrong_text_is_told_in_three_lines(given, wrong, key, kind, tmp_path):
    group = key.split(".")[0]
    mode, file, changes, before = given[READERS.get(key, READERS.get(group, "sample"))]
    if method := METHODS.get(key.split(".")[-1]):
        steps = () if method not in GANS else ("sample.start", "sample.steps")
        changes = {k: v for k, v in changes.items() if k not in steps} | {"method": method}
    workdir = started(before, tmp_path)
    program = run(mode, file, changes | {key: wrong[kind]}, workdir, tmp_path)
    for path in Path(wrong["a folder"]).iterdir():  # what one program writes, the next would read
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = [line for line in program.stderr.splitlines() if not line.startswith(("I", "W"))]
    assert "Traceback" not in program.stderr
    if program.returncode:
        assert program.returncode in (1, 2) and 1 <= len(said) <= 3, program.stderr
        assert max(map(len, said)) < 6000
        assert names(" ".join(said), key, wrong[kind]), program.stderr
    else:
        assert key in FREE, program.stdout
