"""Two processes on this machine do what one does: the same files, the same numbers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import FOLDER, TINY, files, one_sentence, read_json
from PIL import Image

from cdsde import weights

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def arguments(changes: dict, workdir) -> list[str]:
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return [f"--config={FOLDER}", f"--workdir={workdir}", *overrides]


def run(args, count: int, compiled: str, devices: int = 2):
    """The command line in `count` processes; their outputs, once all have ended."""
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
    started = [subprocess.Popen(c, cwd=ROOT, env=env, **pipes) for c in commands]
    outputs = [p.communicate(timeout=300)[0] for p in started]
    for p, output in zip(started, outputs, strict=True):
        assert p.returncode == 0, output
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
        weights.save(named[f"weights.{stage}"], config, stage, random_params(config, stage), {})
    changes |= named | {"sample.split": "train", "eval.split": "train", "sample.batch_size": 2}
    return lambda workdir, mode, **more: arguments(changes | more, workdir) + [f"--mode={mode}"]


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


def test_a_half_told_coordinator(task, tmp_path):
    command = [sys.executable, "-m", "cdsde.main", *task(tmp_path, "eval")]
    for more in (["--coordinator=localhost:1234"], ["--coordinator=auto"], ["--processes=2"]):
        done = subprocess.run(command + more, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert one_sentence(done.stderr.strip().splitlines()[-1])
        assert "--processes" in done.stderr and "--coordinator" in done.stderr
