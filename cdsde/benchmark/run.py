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
    make = {"fronts": plan.fronts, "ablations": plan.ablations, "work": plan.work}[part]
    return make(task.name, methods, task.config)


def go(task: Task, runs: Sequence[plan.Run], results: dict, path: Path) -> None:
    """Compute the runs that `results` lacks; writes results.json (`path`) after each one."""
    results["tasks"][task.name] = task.describe()
    others = [p for p in results["points"] if p["task"] != task.name]
    planned = {_place(run._asdict()) for run in runs}
    # Of these a plan names every point; of a method in the part main, only the seeds asked for.
    whole = {(r.part, r.method) for r in runs if r.part != "main" or r.method in floors.ALL}

    def stays(point: dict) -> bool:
        """Whether a stored point that is not planned now is still of today's task and plan."""
        if _place(point) in planned or (point["part"], point["method"]) in whole:
            return False
        return task.is_current(point, results["runs"][point["run"]]["settings"])

    stored = [p for p in results["points"] if p["task"] == task.name and stays(p)]
    # What cannot run is told before anything changes, and what is known is kept before anything
    # runs, so that nothing is lost if a run fails.
    settings = [task.settings(run) for run in runs]
    keys = [task.key(record) for *_, record in settings]

    def is_known(n: int) -> bool:
        result = results["runs"].get(keys[n])
        return result is not None and (runs[n].part != "work" or plan.PACE in result)

    def keep() -> list[dict]:
        points = [
            {**run._asdict(), "changes": dict(run.changes), "run": keys[n]}
            for n, run in enumerate(runs)
            if is_known(n)
        ]
        points = sorted(stored + points, key=_order)
        results["points"] = others + points
        write_json(path, results)
        return points

    points, maker = keep(), Maker(task)
    for n, run in enumerate(runs):
        if not is_known(n):
            logging.info("%s: run %d of %d, %s", task.name, n + 1, len(runs), describe(run))
            results["runs"][keys[n]] = maker.make(run, *settings[n])
            points = keep()
    # All methods with results, whichever ran now. Pictures may be missing, if made in another work
    # folder: then the existing sheet is kept.
    folders = {
        p["method"]: task.workdir / "samples" / p["run"]
        for p in points
        if p["part"] == "main" and p["seed"] == 0 and p["method"] not in floors.ALL
    }
    if folders and all(folder.exists() for folder in folders.values()):
        write_sheet(task, folders, path.parent / "sheets" / f"{task.name}.png")


def _order(point: dict) -> tuple[int, int]:
    """Methods, floors and seeds of the part main are in the plan's order, whenever they ran."""
    names = (*plan.METHODS, *floors.ALL)
    if point["part"] != "main":
        return len(names), 0
    return names.index(point["method"]), point["seed"]


def _place(point: dict) -> tuple:
    """What identifies a point among those of its task."""
    return tuple(point[key] for key in ("part", "method", "series", "x", "seed"))


def describe(run: plan.Run) -> str:
    """A run, in a line for the log."""
    position = "" if run.x is None else f" at {run.x:g}"
    return f"{run.part}: {run.method}, {run.series}{position}, seed {run.seed}"
