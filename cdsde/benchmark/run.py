"""Runs of the benchmark: made once, kept under a hash of everything that decides their pixels.

A result that is in results.json is not made again, so a benchmark that was cut off, or that gets
new questions, goes on; and one whose weights or settings have changed is made anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import api
from cdsde import config as config_lib
from cdsde.benchmark import floors, plan
from cdsde.data import contact_sheet, inputs, write_png
from cdsde.evaluate import translations
from cdsde.runtime import records
from cdsde.train import loop
from cdsde.translation import domain_statistics
from cdsde.translation import run as translation_run
from cdsde.translation.compiled import Sampler, load_params
from cdsde.weights import checkpoint, resolve

SHEET_IMAGES = 16


class Task:
    """A task of the benchmark, opened once: its images, the reference, and a compiled sampler.

    Args:
      name: a file of configs/, without its ending.
      workdir: where samples, statistics and trained networks go.
      overrides: of its config, for all runs.
    """

    def __init__(self, name: str, workdir: Path, overrides: dict):
        self.name, self.workdir, self.overrides = name, Path(workdir) / name, overrides
        self.config = self.configure({})
        self.source = inputs.open_input(self.config)
        self.pairs = inputs.open_truth(self.config)
        self.reference = translations.open_reference(self.config, self.workdir)
        self.pairwise = translations.pairwise_metrics(translations.lpips(self.config))
        self._sampler: tuple[str, Sampler] | None = None
        self._loaded: dict[str, tuple[dict, dict]] = {}

    def configure(self, changes: dict) -> ConfigDict:
        """The task's config with a run's changes; results and sources of the evaluated split."""
        merged = {**self.overrides, **changes}
        config = api.load_config(f"configs/{self.name}.py", merged)
        config.sample.split = config.eval.split
        config.sample.sheet = 0
        return config

    def describe(self) -> dict:
        """What the numbers of this task are about."""
        d = self.config.data
        ids = "\n".join(map(str, self.source.ids))
        return {
            "images": len(range(len(self.source))[: self.config.sample.limit]),
            "image_list_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "split": self.config.eval.split,
            "image_size": d.image_size,
            "filter": d.filter,
            **({} if d.fit == "crop" else {"fit": d.fit}),
            **self.reference.how,
        }

    def settings(self, run: plan.Run) -> tuple[ConfigDict | None, dict, dict]:
        """A run's config, its parameters, and the record of what decides its pixels."""
        if run.method in floors.names(paired=True):
            record = {"floor": run.method, "input": repr(self.source), "weights": {}}
            return None, {}, record
        config = self.configure({"method": run.method, "sample.seed": run.seed, **run.changes})
        params, origins = self._load(config)
        return config, params, records.settings_record(config, origins, self.source)

    def _load(self, config: ConfigDict) -> tuple[dict, dict[str, str]]:
        """A method's networks and where they came from, read once."""
        of = json.loads(config.to_json_best_effort())
        reads = {k: of[k] for k in ("method", "data", "sde", "weights", *config_lib.GUIDED)}
        reads["domain_images"] = of["contrastive_sde"]["domain_images"]
        reads["match_colours"] = of["sample"]["match_colours"]
        key = json.dumps(reads, sort_keys=True)
        if key not in self._loaded:
            self._loaded[key] = load_params(config, self.workdir / "none")
        return self._loaded[key]

    def key(self, record: dict) -> str:
        """The name of a result: a hash of its settings, weights, images and extractors."""
        record = {**record, "weights": {k: _hash(v) for k, v in record["weights"].items()}}
        whole = json.dumps([self.describe(), record], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def is_current(self, point: dict, record: dict) -> bool:
        """Whether a kept point is what its run would make with today's config and weights."""
        if "floor" in record:
            return True
        changes = point.get("changes", {})
        asked = {"method": point["method"], "sample.seed": point["seed"], **changes}
        try:
            config = self.configure(asked)
        except ValueError:  # its changes and today's config do not go together
            return False
        if records.settings_record(config, record["weights"], self.source) != record:
            return False
        # Networks that the run itself brings are not the task's.
        rest = {k: v for k, v in asked.items() if not k.startswith("weights.")}
        today = self._load(self.configure(rest))[1]
        own = [name for name in record["weights"] if f"weights.{name}" not in changes]
        return all(_hash(record["weights"][n]) == _hash(today.get(n, "")) for n in own)

    def make(self, run: plan.Run, config, params, record) -> tuple[dict, Path]:
        """Translate the split and measure it: `(result, folder of the pictures)`."""
        folder = self.workdir / "samples" / self.key(record)
        begin = time.monotonic()
        if config is None:
            evaluations = 0
            self._write_floor(run.method, folder)
        else:
            config.sample.output = str(folder)
            sampler = self._sampler_for(config, params, record)
            evaluations = sampler.evaluations
            translation_run.sample(config, self.workdir, (sampler, record["weights"]))
        seconds = time.monotonic() - begin
        of = self.config if config is None else config
        per_image = translations.measure(of, self.source, self.pairs, folder, self.pairwise)
        summary = translations.summarise(per_image, of.eval.bootstrap, of.eval.seed)
        count = len(per_image["name"])
        read = translations.written(of, self.source, folder)
        summary |= translations.distances(self.reference, read, count, of.eval.seed)
        result = {
            "task": self.name,
            "method": run.method,
            "seed": run.seed,
            "settings": record,
            "evaluations": evaluations,
            "seconds": round(seconds, 1),
            "metrics": {k: {c: _short(v[c]) for c in v} for k, v in summary.items()},
            "made": records.provenance(),
        }
        if run.part == "main" and run.seed == 0:
            columns = {k: v for k, v in per_image.items() if k != "name"}
            result["per_image"] = {k: [_short(x) for x in v] for k, v in columns.items()}
        return result, folder

    def sheet(self, folders: dict[str, Path], path: Path) -> None:
        """The same first images under every method, as a PNG."""
        count = len(range(len(self.source))[: self.config.sample.limit])
        at = np.linspace(0, count - 1, min(count, SHEET_IMAGES)).astype(int)
        readers = {"source": translations.resized(self.config, self.source)}
        for name, folder in folders.items():
            readers[name] = translations.written(self.config, self.source, folder)
        if self.pairs is not None:
            readers[floors.TRUTH] = translations.resized(self.config, self.pairs)
        rows = [[read(j) for read in readers.values()] for j in at]
        scale = max(1, 64 // self.config.data.image_size)
        write_png(path, contact_sheet(rows, list(readers), blocks=2, scale=scale))

    def trained(self, stage: str, steps: int) -> Path:
        """Weights of a guiding network after so many steps, trained here where they are not there.

        Encoder and classifier have one architecture, optimiser, constant rate and number of network
        evaluations a step: two views of an image for the one, twice the images for the other. The
        rate is the same from the first step, so that a shorter training is the beginning of a
        longer one, and the longer goes on from it. Tasks of the same domains share them.
        """
        batch = self.config.train.encoder.batch_size
        config = self.configure(
            {
                "train.stage": stage,
                "train.steps": steps,
                "train.batch_size": batch if stage == "encoder" else 2 * batch,
                f"train.{stage}.schedule": "constant",
                f"train.{stage}.warmup": 0,
                "train.checkpoint_every": steps,
            }
        )
        folder = self.workdir.parent / "convergence" / f"{stage}-{training_hash(config, stage)}"
        path = folder / f"{steps}.safetensors"
        if not path.exists():
            loop.train_stage(config, folder, stage)
            shapes = resolve.shapes(config, stage)
            params = checkpoint.open_ema(folder, stage, shapes)
            resolve.save(path, config, stage, params, {"step": steps})
        return path

    def _sampler_for(self, config, params, record) -> Sampler:
        """The sampler of the run before where only numbers differ, so that it need not compile."""
        if config.method in config_lib.GANS:
            return Sampler(config, params)
        static = json.loads(json.dumps(record))
        settings = static[config.method]
        for traced in ("weight", "domain_weight", "content_weight", "cutoff", "start"):
            settings.pop(traced, None)
        static.pop("start")
        for traced in ("seed", "eta", "start", "rounds", "follow", "spacing", "variance"):
            static["sample"].pop(traced)
        steps = config.sample.steps or config_lib.start_index(config)
        key = json.dumps([static, steps], sort_keys=True)
        if self._sampler is not None and self._sampler[0] == key:
            self._sampler[1].update(config)
        else:
            self._sampler = key, Sampler(config, params)
        return self._sampler[1]

    def _write_floor(self, name: str, folder: Path) -> None:
        config = self.config
        real = inputs.open_split(config, config.data.target, config.eval.reference)
        read = translations.resized(config, real)
        images = np.stack([read(j) for j in range(len(real))])
        truth = None if self.pairs is None else translations.resized(config, self.pairs)
        table = None
        if name == floors.COLOURS:
            table = domain_statistics.colour_table(
                self.configure({"sample.match_colours": plan.MATCHED})
            )[0]
        make = floors.pictures(
            name, translations.resized(config, self.source), truth, images, table
        )
        folder.mkdir(parents=True, exist_ok=True)
        for j, png in enumerate(records.output_names(self.source.ids)):
            write_png(folder / png, make(j))


def plan_of(task: Task, part: str, methods: Sequence[str], seeds: int) -> list[plan.Run]:
    """The runs of a part of the benchmark; a GAN's only where the task names its weights."""
    name = task.name
    given = task.config.weights
    methods = [m for m in methods if m not in config_lib.GANS or given[m] is not None]
    if part == "main":
        shown = floors.names(task.pairs is not None)
        floor_runs = [plan.Run("main", name, f, f, None, {}) for f in shown]
        return floor_runs + plan.main(name, methods, range(seeds))
    if part == "convergence":
        return plan.convergence(name, methods, task.config, task.trained)
    make = {"fronts": plan.fronts, "ablations": plan.ablations, "solvers": plan.solvers}[part]
    return make(name, methods, task.config)


def go(task: Task, runs: Sequence[plan.Run], results: dict, path: Path) -> None:
    """Make what of `runs` is not in `results`, writing results.json after each one."""
    results["tasks"][task.name] = task.describe()
    kept = [p for p in results["points"] if p["task"] != task.name]
    asked = {run.part for run in runs}
    # Points of parts that were not asked for stay, unless config or weights have changed.
    points = [
        p
        for p in results["points"]
        if p["task"] == task.name
        and p["part"] not in asked
        and task.is_current(p, results["runs"][p["run"]]["settings"])
    ]
    folders = {}
    for number, run in enumerate(runs):
        config, params, record = task.settings(run)
        key = task.key(record)
        point = {**run._asdict(), "changes": dict(run.changes)}
        folder = task.workdir / "samples" / key
        if key not in results["runs"]:
            logging.info("%s: run %d of %d, %s", task.name, number + 1, len(runs), describe(run))
            results["runs"][key], folder = task.make(run, config, params, record)
        if run.part == "main" and run.seed == 0 and config is not None:
            folders[run.method] = folder
        points.append({**point, "run": key})
        results["points"] = kept + points
        records.write_json(path, results)
    # Without some method's pictures (made in another work folder) an older sheet tells more.
    if folders and all(folder.exists() for folder in folders.values()):
        task.sheet(folders, path.parent / "sheets" / f"{task.name}.png")


def describe(run: plan.Run) -> str:
    """A run in a line of the log."""
    at = "" if run.x is None else f" at {run.x:g}"
    return f"{run.part}: {run.method}, {run.series}{at}, seed {run.seed}"


def _hash(origin: str) -> str:
    """The hash in an origin such as "shipped:NAME (sha256 HASH)": a file may lie elsewhere."""
    return origin.rsplit("sha256 ", 1)[-1].rstrip(")")


def training_hash(config: ConfigDict, stage: str) -> str:
    """A hash of what a guiding network's training depends on, whichever domains are translated."""
    of = json.loads(config.to_json_best_effort())
    data = {k: v for k, v in of["data"].items() if k not in ("source", "target")}
    data["domains"] = config_lib.domains(config)
    skipped = {"steps", "checkpoint_every", *config_lib.STAGES} - {stage}
    train = {k: v for k, v in of["train"].items() if k not in skipped}
    parts = [data, train, *(of[k] for k in (stage, "sde", "dtype", "remat"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _short(value):
    return None if value is None else float(f"{value:.5g}") if isinstance(value, float) else value
