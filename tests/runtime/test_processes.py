"""Two processes on this machine do what one does: the same files, the same numbers."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import FOLDER, TINY, files, one_sentence, read_json
from PIL import Image

from cdsde import load_config
from cdsde.weights import checkpoint, exported, resolve

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def arguments(changes: dict, workdir) -> list[str]:
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return [f"--config={FOLDER}", f"--workdir={workdir}", *overrides]


def start(args, count: int, compiled: str, devices: int = 2):
    """The command line in `count` processes, of so many devices each."""
    env = dict(
        os.environ,
        JAX_NUM_CPU_DEVICES=str(devices),
        JAX_COMPILATION_CACHE_DIR=compiled,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    port = free_port()
    commands = [[sys.executable, "-m", "cdsde.main", *args] for _ in range(count)]
    if count > 1:
        for p, command in enumerate(commands):
            command += [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={p}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [subprocess.Popen(c, cwd=ROOT, env=env, **pipes) for c in commands]


def run(args, count: int, compiled: str, devices: int = 2, ends: int = 0):
    """The outputs of `start`'s processes, once all have ended with code `ends`."""
    return finish(start(args, count, compiled, devices), ends)


def finish(started, ends: int = 0):
    outputs = [p.communicate(timeout=300)[0] for p in started]
    for p, output in zip(started, outputs, strict=True):
        assert p.returncode == ends, output
    return outputs


@pytest.fixture(scope="module")
def task(pictures, tmp_path_factory):
    """`args(workdir, mode)` of a tiny task whose networks are there."""
    from helpers import random_params

    from cdsde import load_config

    changes = TINY | {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    config = load_config(FOLDER, changes)
    folder = tmp_path_factory.mktemp("weights")
    named = {}
    for stage in ("score", "encoder"):
        named[f"weights.{stage}"] = folder / f"{stage}.safetensors"
        exported.save(named[f"weights.{stage}"], config, stage, random_params(config, stage), {})
    changes |= named | {"sample.split": "train", "sample.batch_size": 2}
    return lambda workdir, mode, **more: arguments(changes | more, workdir) + [f"--mode={mode}"]


@pytest.mark.slow
def test_sampling_and_evaluation_over_two_processes(task, tmp_path, compiled_programs):
    for name, count in (("one", 1), ("two", 2)):
        run(task(tmp_path / name, "sample"), count, compiled_programs)
        outputs = run(task(tmp_path / name, "eval"), count, compiled_programs)
        assert ["12 images;" in text for text in outputs] == [True] + [False] * (count - 1)
    one, two = (tmp_path / name / "samples" / "contrastive_sde" for name in ("one", "two"))
    assert files(one).keys() == files(two).keys() and len(files(one)) == 14
    for path in one.glob("*.png"):
        a, b = (np.asarray(Image.open(p), int) for p in (path, two / path.name))
        assert np.abs(a - b).max() <= 1
    # The same pictures, so that only the way of adding up differs.
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "samples").symlink_to(tmp_path / "one" / "samples")
    run(task(tmp_path / "again", "eval"), 2, compiled_programs)
    a, b = (
        read_json(tmp_path / name / "eval" / "contrastive_sde" / "metrics.json")
        for name in ("one", "again")
    )
    assert a["metrics"].keys() == b["metrics"].keys() and len(a["metrics"]) == 8
    for name, row in a["metrics"].items():
        assert row["value"] == pytest.approx(b["metrics"][name]["value"], rel=1e-6)
        assert row["images"] == b["metrics"][name]["images"] == 12
    assert a["realism"]["reference"] == b["realism"]["reference"]


@pytest.fixture
def training(pictures, compiled_programs):
    """`training(workdir, **changes)`: arguments of a training of a score network."""
    own = {"method": "sdedit", "train.score.schedule": "constant", "train.keep": 100}
    data = {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}

    def make(workdir, **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return arguments(TINY | own | data | changes, workdir) + ["--mode=train"]

    return make


def saved_steps(workdir) -> list[int]:
    folder = workdir / "checkpoints" / "score"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def wait_for(processes, condition) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert all(p.poll() is None for p in processes), "it was over too soon"
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_same_network(training, one, other, tolerance: float) -> None:
    config = load_config(FOLDER, TINY)
    shapes = resolve.shapes(config, "score")
    a, b = (checkpoint.open_ema(workdir, "score", shapes) for workdir in (one, other))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_training_over_two_processes_killed_and_resumed(training, tmp_path, compiled_programs):
    # Two processes of two devices each, the network's state split over pairs of them.
    split = {"train__steps": 30, "mesh__fsdp": 2}
    run(training(tmp_path / "whole", **split), 2, compiled_programs)
    args = training(tmp_path / "two", **split)
    started = start(args, 2, compiled_programs)
    wait_for(started, lambda: max(saved_steps(tmp_path / "two"), default=0) >= 4)
    started[1].kill()
    started[0].kill()  # as a launcher does, when one of them is gone
    for process in started:
        process.communicate()
    assert 4 <= saved_steps(tmp_path / "two")[-1] < 30
    outputs = run(args, 2, compiled_programs)
    assert "resumed from" in outputs[0]
    assert_same_network(training, tmp_path / "whole", tmp_path / "two", 0)


@pytest.mark.slow
def test_training_over_two_processes_is_that_of_one(training, tmp_path, compiled_programs):
    """Float32 sums in another order differ, and the more the longer a training is."""
    run(training(tmp_path / "one", train__steps=10), 1, compiled_programs, devices=1)
    run(training(tmp_path / "two", train__steps=10, mesh__fsdp=2), 2, compiled_programs)
    assert_same_network(training, tmp_path / "one", tmp_path / "two", 5e-6)


@pytest.mark.parametrize(
    "number, count, workers",
    [
        pytest.param(signal.SIGTERM, 1, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, 0, marks=pytest.mark.campaign),
        pytest.param(signal.SIGINT, 1, 2, marks=pytest.mark.campaign),
    ],
)
def test_a_signal_saves_the_work_of_a_training(
    training, tmp_path, compiled_programs, number, count, workers
):
    often = {"train__steps": 10_000, "train__checkpoint_every": 10_000}
    long = training(tmp_path / "cut", data__workers=workers, **often)
    started = start(long, count, compiled_programs)
    table = tmp_path / "cut" / "logs" / "score" / "metrics.csv"
    wait_for(started, lambda: table.exists() and table.read_text().count("\n") > 3)
    started[-1].send_signal(number)  # one of them hears it, all of them stop
    outputs = finish(started, ends=75 if number == signal.SIGTERM else 130)
    (step,) = saved_steps(tmp_path / "cut")
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert f"stopped by {name} after step {step} of 10000" in outputs[0]
    assert "Traceback" not in outputs[0] and "leaked" not in outputs[0]
    # On one process, whatever it was before.
    run(training(tmp_path / "cut", train__steps=step + 2), 1, compiled_programs)
    run(training(tmp_path / "whole", train__steps=step + 2), 1, compiled_programs)
    assert_same_network(training, tmp_path / "cut", tmp_path / "whole", 1e-5)


def test_a_half_told_coordinator(task, tmp_path):
    command = [sys.executable, "-m", "cdsde.main", *task(tmp_path, "eval")]
    for more in (["--coordinator=localhost:1234"], ["--coordinator=auto"], ["--processes=2"]):
        done = subprocess.run(command + more, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert one_sentence(done.stderr.strip().splitlines()[-1])
        assert "--processes" in done.stderr and "--coordinator" in done.stderr
