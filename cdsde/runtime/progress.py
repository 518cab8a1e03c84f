"""Reports of a run: TensorBoard event files, CSV files, rates and plain-text tables."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cdsde.runtime.files import disk_full, free_space, write_bytes, writing

LEAST = 2**16  # bytes that are free for the next rows


class Writer:
    """Writes scalars and images of a run to TensorBoard event files and `metrics.csv`.

    A resumed run appends. Rows of steps after `resume_step`, from a run that was killed before its
    next checkpoint, are dropped, so each step has one row.
    """

    def __init__(self, folder, resume_step: int = 0):
        # Imported here: tensorboardX imports PyTorch where it is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        self._folder = Path(folder)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._csv = self._folder / "metrics.csv"
        self._rows = []
        if self._csv.exists():
            with self._csv.open(newline="") as f:
                self._rows = [r for r in csv.DictReader(f) if int(r["step"]) <= resume_step]
        self._write_rows()
        self._events = SummaryWriter(str(self._folder), purge_step=resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row: the values by name, at `step`.

        Raises:
          OSError: the row cannot be written.
        """
        # A thread writes the event file, whose errors would be a trace.
        if free_space(self._folder) < LEAST:
            raise disk_full(self._csv, LEAST)
        row = {"step": step, **{k: f"{v:.6g}" for k, v in values.items()}}
        new_columns = bool(self._rows) and set(row) != set(self._rows[0])
        self._rows.append(row)
        if new_columns or len(self._rows) == 1:
            self._write_rows()
        else:
            with writing(self._csv), self._csv.open("a", newline="") as f:
                csv.DictWriter(f, self._columns()).writerow(row)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 `[H, W, 3]`, to the event file."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes the event file."""
        with writing(self._folder):
            self._events.close()

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(k for row in self._rows for k in row))

    def _write_rows(self) -> None:
        # Replaced, not rewritten in place: a kill must not lose the rows so far.
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns() or ["step"])
        writer.writeheader()
        writer.writerows(self._rows)
        write_bytes(self._csv, text.getvalue().encode())


class Rate:
    """Measures steps per second since the last call, and estimates the remaining time."""

    def __init__(self, first: int, last: int):
        self._before, self._last, self._begin = first, last, time.monotonic()

    def restart(self, step: int) -> None:
        """Measures from this step on: the compilation before it would lower the rate."""
        self._before, self._begin = step, time.monotonic()

    def __call__(self, step: int) -> tuple[float, str]:
        """Returns steps per second, and the remaining time as h:mm:ss."""
        rate = (step - self._before) / max(time.monotonic() - self._begin, 1e-9)
        self.restart(step)
        return rate, duration((self._last - step) / rate if rate > 0 else math.inf)


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss; "?" where they are not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def table(rows: list[list[str]], header: list[str]) -> str:
    """Formats a plain-text table: the first column left-aligned, the others right-aligned."""
    cells = [header] + rows
    widths = [max(len(r[c]) for r in cells) for c in range(len(header))]

    def line(row):
        return "  ".join(
            v.ljust(w) if c == 0 else v.rjust(w)
            for c, (v, w) in enumerate(zip(row, widths, strict=True))
        )

    return "\n".join([line(header), "  ".join("-" * w for w in widths)] + [line(r) for r in rows])
