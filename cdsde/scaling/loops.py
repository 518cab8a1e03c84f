"""What runs around the compiled programs: training and sampling as users start them, timed.

Both are compared with the compiled program alone, so that what they lose to reading, writing,
reports and transfers shows as a share.
"""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from cdsde import api
from cdsde.scaling import programs, timing
from cdsde.train import loop
from cdsde.translation import run
from cdsde.translation.compiled import Sampler

REPORTS = 4  # reports of the timed training; the first is not counted, for it waits for nothing
EVERY = 10  # steps from report to report
BATCHES = 5  # batches of the timed sampling; the time is that from the first to the last


class Loop(NamedTuple):
    """Seconds of a step or a batch: in the loop that users run, and of its compiled program alone.

    Attributes:
      name: what was timed.
      images: images per step or batch.
      seconds, program: the two times.
    """

    name: str
    images: int
    seconds: float
    program: float

    def sentence(self) -> str:
        """Both times, and the share that passes outside the program."""
        outside = 100 * max(0, 1 - self.program / self.seconds)
        return (
            f"{self.name}, {self.images} image(s): {1e3 * self.seconds:.0f} ms, its program alone "
            f"{1e3 * self.program:.0f} ms, {outside:.1f}% outside"
        )


def measure(config: ConfigDict, devices) -> Iterator[Loop]:
    """Training of the embedded task's score network, and sampling with it and with `config`."""
    small = api.load_config("twemoji2fluent")
    small.method = "sdedit"
    with _quiet():
        yield training(small, devices)
        yield sampling(small, devices, 16)
        yield sampling(config, devices, devices.size)


def training(config: ConfigDict, devices) -> Loop:
    """`--mode=train` of the score network."""
    config = config.copy_and_resolve_references()
    batch, c = config.train.score.batch_size, config.train.score
    c.steps, config.train.log_every = 1 + REPORTS * EVERY, EVERY
    config.train.sample_every = 0
    step = programs.train_step(config, "score", devices, batch)
    before = timing.measure(step).seconds
    with tempfile.TemporaryDirectory() as workdir:
        loop.train_stage(config, workdir, "score")
        with (Path(workdir) / "logs" / "score" / "metrics.csv").open(newline="") as f:
            rows = [row for row in csv.DictReader(f) if int(row["step"]) % EVERY == 0]
    seconds = np.median([1 / float(row["steps_per_second"]) for row in rows[1:]])
    alone = (before + timing.measure(step).seconds) / 2  # speed drifts on a shared machine
    return Loop("training score, one step", batch, float(seconds), alone)


def sampling(config: ConfigDict, devices, images: int) -> Loop:
    """`--mode=sample` of a folder of PNG files, with random weights."""
    config = config.copy_and_resolve_references()
    size = config.data.image_size
    steps = min(config.sample.steps or config.sde.num_steps, 4 if size > 64 else 15)
    config.sample.update(steps=steps, batch_size=images, limit=None, sheet=0)
    program = programs.translation(config, devices, images)
    before = timing.measure(program).seconds
    params = timing.arguments(program)[0]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for n in range(BATCHES * images):
            coarse = rng.integers(0, 255, (size // 8, size // 8, 3), np.uint8)
            Image.fromarray(coarse).resize((size, size)).save(source / f"{n:04d}.png")
        config.sample.input = str(source)
        results = run.sample(config, folder, (Sampler(config, params, devices), {}))
        written = sorted(f.stat().st_mtime_ns for f in results.glob("*.png"))
    last_of_batch = written[images - 1 :: images]
    seconds = (last_of_batch[-1] - last_of_batch[0]) / (len(last_of_batch) - 1) / 1e9
    alone = (before + timing.measure(program).seconds) / 2
    name = f"sampling at {size}², {steps} steps of {config.method}, one batch"
    return Loop(name, images, seconds, alone)


@contextlib.contextmanager
def _quiet():
    """Without the reports of training and sampling, which would break the table."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
