"""The pictures of a run, by a method or a floor, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.benchmark import floors, paired, plan
from cdsde.benchmark.task import Task
from cdsde.config import title
from cdsde.data import contact_sheet, inputs, write_png
from cdsde.evaluate import translations
from cdsde.runtime import records
from cdsde.translation.compiled import Sampler
from cdsde.translation.domain_statistics import colour_table
from cdsde.translation.run import sample

SHEET_IMAGES = 8  # in one block; twice as many where two blocks fit a screen


class Maker:
    """Makes the pictures of a task's runs; reuses the last sampler to avoid recompiling.

    Args:
      task: the task.
    """

    def __init__(self, task: Task):
        self.task = task
        self._sampler: Sampler | None = None
        self._params: dict = {}
        self._taught: Callable | None = None  # the network that learned from pairs

    def make(self, run: plan.Run, config, params, record) -> dict:
        """Translate and evaluate the split; returns the result.

        `config`, `params` and `record` are those of `Task.settings(run)`.
        """
        task = self.task
        folder = task.workdir / "samples" / task.key(record)
        begin = time.monotonic()
        evaluations = 0
        if config is None:
            self._write_floor(run.method, folder)
        else:
            config.sample.output = str(folder)
            sampler = self._sampler_for(config, params)
            evaluations = sampler.evaluations
            sample(config, task.workdir, (sampler, record["weights"]))
        seconds = time.monotonic() - begin
        config = task.config if config is None else config
        per_image = translations.measure(
            config, task.source, task.pairs, folder, task.pairwise, task.legibility
        )
        summary = translations.summarise(per_image, config.eval.bootstrap)
        read = translations.written(config, task.source, folder)
        summary |= translations.distances(task.reference, read, len(per_image["name"]))
        result = {
            "task": task.name,
            "method": run.method,
            "seed": run.seed,
            "settings": record,
            "evaluations": evaluations,
            "seconds": round(seconds, 1),
            "metrics": {k: {c: _short(v[c]) for c in v} for k, v in summary.items()},
            "made": records.provenance(),
        }
        if run.part == "work":
            result[plan.PACE] = self._pace(config)
        if run.part == "main" and run.seed == 0:
            columns = {k: v for k, v in per_image.items() if k != "name"}
            result["per_image"] = {k: [_short(x) for x in v] for k, v in columns.items()}
        return result

    def _sampler_for(self, config: ConfigDict, params: dict) -> Sampler:
        """The previous run's sampler if it can be updated, else a new one."""
        if self._sampler is not None and params is self._params:
            try:
                self._sampler.update(config)
                return self._sampler
            except ValueError:  # a key that is compiled in has changed
                pass
        self._sampler, self._params = Sampler(config, params), params
        return self._sampler

    def _pace(self, config: ConfigDict) -> float:
        """Seconds an image of the last sampler's program takes: the median of three batches."""
        assert self._sampler is not None
        count = min(config.sample.batch_size, len(self.task.source))
        read = translations.resized(config, self.task.source)
        images = np.stack([read(j) for j in range(count)])
        ids = np.arange(count, dtype=np.uint32)
        self._sampler.states(images, ids)  # compiled
        seconds = []
        for _ in range(3):
            begin = time.monotonic()
            self._sampler.states(images, ids)
            seconds.append(time.monotonic() - begin)
        return _short(float(np.median(seconds)) / count)

    def _write_floor(self, name: str, folder: Path) -> None:
        task, config = self.task, self.task.config
        real = inputs.open_split(config, config.data.target, config.eval.reference)
        read = translations.resized(config, real)
        images = np.stack([read(j) for j in range(len(real))])
        truth = None if task.pairs is None else translations.resized(config, task.pairs)
        table = None
        if name == floors.COLOURS:
            matched = {"method": "sdedit", "sample.match_colours": plan.MATCHED}
            table = colour_table(task.configure(matched))[0]
        source = translations.resized(config, task.source)
        if name in (floors.PAIRED, floors.SHARP) and self._taught is None:
            self._taught = paired.trained(config)
        make = floors.pictures(name, source, truth, images, table, self._taught)
        folder.mkdir(parents=True, exist_ok=True)
        for j, png in enumerate(records.output_names(task.source.ids)):
            write_png(folder / png, make(j))


def write_sheet(task: Task, folders: dict[str, Path], path: Path) -> None:
    """Write a sheet of the same images under every method, between source and truth, as a PNG.

    Args:
      task: the task.
      folders: the pictures of each method, in the order of the columns.
      path: the PNG.
    """
    count = len(range(len(task.source))[: task.config.sample.limit])
    readers = {"source": translations.resized(task.config, task.source)}
    for name, folder in folders.items():
        readers[name] = translations.written(task.config, task.source, folder)
    if task.pairs is not None:
        readers[floors.TRUTH] = translations.resized(task.config, task.pairs)
    blocks = 2 if len(readers) <= 5 else 1
    positions = np.linspace(0, count - 1, min(count, SHEET_IMAGES * blocks)).astype(int)
    rows = [[read(j) for read in readers.values()] for j in positions]
    write_png(path, contact_sheet(rows, [title(n) for n in readers], blocks=blocks))


def methods_with_weights(config: ConfigDict, methods) -> list[str]:
    """The methods without the GANs whose weights the config does not name."""
    return [m for m in methods if m not in config_lib.GANS or config.weights[m] is not None]


def _short(value):
    return float(f"{value:.5g}") if isinstance(value, float) else value
