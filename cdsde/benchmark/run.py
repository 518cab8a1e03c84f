"""Runs of the benchmark, each computed once.

Runs with a result in results.json are skipped, so that an interrupted or extended benchmark
continues. A run whose weights or settings have changed is computed again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from cdsde.benchmark import floors, guides, paired, plan
from cdsde.benchmark.pictures import Maker, methods_with_weights, write_sheet
from cdsde.benchmark.task import Task
from cdsde.runtime.files import write_json


def plan_of(task: Task, part: str, methods: Sequence[str], seeds: int) -> list[plan.Run]:
    """The runs of a part of the benchmark; GANs only if the task names their weights."""
    methods = methods_with_weights(task.config, methods)
    if part == "main":
        c = task.config
        learns = c.eval.shapes and c.sample.split != paired.SPLIT
        names = floors.names(task.pairs is not None, learns)
        floor_runs = [plan.Run("main", task.name, f, f, None, {}) for f in names]
        return floor_runs + plan.main(task.name, methods, range(seeds))
    if part == "convergence":
        file_of = functools.partial(guides.trained, task)
        return plan.convergence(task.name, methods, task.config, file_of)
    make = {"fronts": plan.fronts, "ablations": plan.ablations, "solvers": plan.solvers}[part]
    return make(task.name, methods, task.config)


def go(task: Task, runs: Sequence[plan.Run], results: dict, path: Path) -> None:
    """Compute the runs that `results` lacks; writes results.json (`path`) after each one."""
    results["tasks"][task.name] = task.describe()
    others = [p for p in results["points"] if p["task"] != task.name]
    parts = {run.part for run in runs}
    # Points of other parts are kept, unless config or weights have changed.
    points = [
        p
        for p in results["points"]
        if p["task"] == task.name
        and p["part"] not in parts
        and task.is_current(p, results["runs"][p["run"]]["settings"])
    ]
    folders, maker = {}, Maker(task)
    for number, run in enumerate(runs):
        config, params, record = task.settings(run)
        key = task.key(record)
        folder = task.workdir / "samples" / key
        if key not in results["runs"]:
            logging.info("%s: run %d of %d, %s", task.name, number + 1, len(runs), describe(run))
            results["runs"][key], folder = maker.make(run, config, params, record)
        if run.part == "main" and run.seed == 0 and config is not None:
            folders[run.method] = folder
        points.append({**run._asdict(), "changes": dict(run.changes), "run": key})
        results["points"] = others + points
        write_json(path, results)
    # Pictures may be missing, if made in another work folder: then the existing sheet is kept.
    if folders and all(folder.exists() for folder in folders.values()):
        write_sheet(task, folders, path.parent / "sheets" / f"{task.name}.png")


def describe(run: plan.Run) -> str:
    """A run, in a line for the log."""
    position = "" if run.x is None else f" at {run.x:g}"
    return f"{run.part}: {run.method}, {run.series}{position}, seed {run.seed}"
