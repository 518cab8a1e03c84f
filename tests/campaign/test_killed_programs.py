"""Programs that are stopped at 140 random moments end as if they never had been.

`python -m pytest -m campaign tests/campaign`; about 20 minutes here. The number in a test's name is
its seed. Five times each, a program is started and killed at a random moment of its run; then it
runs to its end.
"""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import FOLDER, TINY, one_sentence, overrides, with_random_weights
from PIL import Image

from cdsde import load_config
from cdsde.weights import checkpoint, resolve

pytestmark = pytest.mark.campaign
ROOT = Path(__file__).parent.parent.parent
STOPS = 5
PROGRAMS = ("train", "sample", "eval", "edit")


@pytest.fixture(scope="module")
def commands(tmp_path_factory, pictures, golden):
    """`{mode: arguments}` of programs that take a few seconds each."""
    folder = tmp_path_factory.mktemp("killed")
    task = TINY | {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    task |= {"sample.start": 20, "sample.steps": 20, "sample.batch_size": 1, "method": "sdedit"}
    known = with_random_weights(folder, task, "score")
    training = {"train.stage": "score", "train.steps": 40, "train.keep": 2, "train.sample_every": 8}
    (folder / "pictures").mkdir()
    for n in range(3):
        coarse = np.random.default_rng(n).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((80, 70)).save(folder / "pictures" / f"{n}.png")
    edit = {
        "method": "ddim",
        "model.path": golden / "latent" / "model",
        "sample.input": folder / "pictures",
        "sample.batch_size": 1,
        "edit.caption": "a photo of a cat",
        "data.image_size": 64,
        "edit.steps": 3,
    }
    tasks = {"train": task | training, "sample": known, "eval": known}
    made = {mode: [f"--config={FOLDER}", *overrides(changes)] for mode, changes in tasks.items()}
    made["edit"] = [f"--config={ROOT / 'configs/edit_cat2dog.py'}", *overrides(edit)]
    return made


@pytest.fixture(scope="module")
def start(commands, tmp_path_factory):
    """`start(mode, workdir)`: the running program."""
    caches = str(tmp_path_factory.mktemp("caches"))

    def begin(mode: str, workdir: Path) -> subprocess.Popen:
        arguments = [*commands[mode], f"--mode={mode}", f"--workdir={workdir}"]
        return subprocess.Popen(
            [sys.executable, "-m", "cdsde.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": caches, "JAX_NUM_CPU_DEVICES": "1"},
            text=True,
        )

    return begin


def to_the_end(start, mode: str, workdir: Path) -> None:
    if mode == "eval":
        to_the_end(start, "sample", workdir)
    program = start(mode, workdir)
    said = program.communicate(timeout=300)[1]
    assert program.returncode == 0, said


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """`undisturbed(mode)`: the folder of a run that nobody stopped, and the seconds it took."""
    made = {}

    def run(mode: str) -> tuple[Path, float]:
        if mode not in made:
            folder = tmp_path_factory.mktemp(mode)
            to_the_end(start, mode, folder / "first")  # fills the cache of compiled programs
            if mode == "eval":
                to_the_end(start, "sample", folder / "second")
            begin = time.monotonic()
            program = start(mode, folder / "second")
            assert program.wait(300) == 0
            made[mode] = folder / "second", time.monotonic() - begin
        return made[mode]

    return run


def contents(folder: Path) -> dict[str, object]:
    """What a run left in its folder, without times and paths.

    Of the files of checkpoints, and of TensorBoard, not even two undisturbed runs have equal ones:
    here are the averaged parameters of the last checkpoint, and the rows of its log.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.name.startswith("events.") or path.is_dir() or name.parts[0] == "checkpoints":
            continue
        text = path.read_bytes().replace(str(folder).encode(), b"")
        found[str(name)] = re.sub(rb'"written": ".*"', b"", text)
        if path.name == "metrics.csv":
            found[str(name)] = rows(path)
    if checkpoint.latest_step(folder, "score") is not None:
        found["steps"] = sorted(os.listdir(checkpoint.stage_folder(folder, "score")))
        shapes = resolve.shapes(load_config(FOLDER, TINY), "score")
        averaged = jax.tree.leaves(checkpoint.open_ema(folder, "score", shapes))
        found["averaged"] = [np.asarray(leaf).tobytes() for leaf in averaged]
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        every = list(csv.DictReader(f))
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in every]


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("mode", PROGRAMS)
def test_stopped_at_random_moments_ends_as_if_never_stopped(
    start, undisturbed, mode, seed, tmp_path
):
    whole, seconds = undisturbed(mode)
    draw = random.Random(f"{mode} {seed}")
    kind = signal.SIGKILL if seed < 5 else signal.SIGINT
    if mode == "eval":
        to_the_end(start, "sample", tmp_path)
    for _ in range(STOPS):
        program = start(mode, tmp_path)
        time.sleep(draw.uniform(0, seconds))
        program.send_signal(kind)
        said = program.communicate(timeout=60)[1]
        assert program.returncode in (0, -kind if kind == signal.SIGKILL else 130), said
        if program.returncode == 130:
            assert one_sentence(said.strip().splitlines()[-1]) and "Traceback" not in said, said
    to_the_end(start, mode, tmp_path)
    got, expected = contents(tmp_path), contents(whole)
    assert sorted(got) == sorted(expected)
    different = [name for name in got if got[name] != expected[name]]
    assert not different
