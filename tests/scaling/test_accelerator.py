"""`launch/accelerator.sh` on a CPU with tiny networks: what it leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FOLDER, TINY, read_json

from cdsde.weights import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_leaves_measurements_and_a_training_that_goes_on_elsewhere(pictures, tmp_path):
    changes = TINY | {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    changes |= {"train.steps": 20, "data.workers": 0}
    sets = " ".join(f"--config.{k}={v}".replace(" ", "") for k, v in changes.items())
    out = tmp_path / "out"
    env = os.environ | {
        "OUT": str(out),
        "PYTHON": sys.executable,
        "BENCH": f"--config={FOLDER} --parts=forward --images=1 --repeat=1 {sets}",
        "TRAIN": f"--config={FOLDER} --config.train.stage=score {sets}",
    }
    command = ["bash", str(ROOT / "launch" / "accelerator.sh"), "4"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "jax" in (out / "machine.txt").read_text()
    for dtype in ("float32", "bfloat16"):
        record = read_json(out / f"bench_{dtype}.json")
        assert record["overrides"]["dtype"] == dtype
        assert [row[0] for row in record["rows"]] == ["score forward"]
    pieces = sorted(out.glob("train.tar.*"))
    assert pieces and all(piece.stat().st_size <= 15 * 2**20 for piece in pieces)
    packed = b"".join(piece.read_bytes() for piece in pieces)
    subprocess.run(["tar", "x", "-C", str(tmp_path)], input=packed, check=True)
    assert checkpoint.latest_step(tmp_path / "train", "score") == 20
