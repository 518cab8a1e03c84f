"""The time until the first picture: `--mode=sample` of one image, as users start it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

TASK = "gothic2mincho"
IMPORTS = "import cdsde.config.command_line, cdsde.weights.adoption, cdsde.translation.run"
AGAIN = 3  # runs, of which the median counts


def measure() -> Iterator[str]:
    """Sentences about the imports, a first start and one with a warm cache.

    Raises:
      ValueError: the program failed; the message has the last line of its output.
    """
    _seconds([sys.executable, "-c", IMPORTS])  # reads the files from the disk
    imports = _median(_seconds, [sys.executable, "-c", IMPORTS])
    yield f"imports: {imports:.1f} s"
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "cdsde.main", f"--config={TASK}", "--mode=sample"]
        command += ["--config.sample.limit=1", f"--config.cache={cache}"]
        yield f"first start of {TASK}, to the picture: {_sample(command):.1f} s"
        warm = _median(_sample, command)
        yield f"with a warm cache: {warm:.1f} s, {warm - imports:.1f} s after the imports"


def _sample(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as workdir:
        return _seconds([*command, f"--workdir={workdir}"])


def _median(timed: Callable[[list[str]], float], command: list[str]) -> float:
    return statistics.median(timed(command) for _ in range(AGAIN))


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"{' '.join(command[1:4])} failed: {message}")
    return time.perf_counter() - begin
