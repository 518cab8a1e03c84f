"""A task of the benchmark: its config, its images, and the keys of its results.

The key of a result is a hash of everything that its pixels and numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from cdsde import api
from cdsde import config as config_lib
from cdsde.benchmark import floors, plan
from cdsde.data import content, inputs
from cdsde.diffusion import methods as diffusion_methods
from cdsde.evaluate import translations
from cdsde.runtime import records
from cdsde.translation.compiled import load_params
from cdsde.weights import adoption

NOWHERE = "no work folder"  # networks are those of `weights.*`


class Task:
    """A task of the benchmark, with its data open.

    Args:
      name: name of its config.
      workdir: folder of samples, statistics and trained networks.
      overrides: overrides of its config, for all runs.

    Raises:
      ValueError: the config is invalid, names no reference, or its data cannot be opened.
    """

    def __init__(self, name: str, workdir: Path, overrides: dict):
        self.name, self.workdir, self.overrides = name, Path(workdir) / name, overrides
        self.config = self.configure({})
        if not self.config.eval.reference:
            raise ValueError(
                "the benchmark measures realism: set --config.eval.reference to a split of the "
                f"target's images, such as train (it is {self.config.eval.reference!r})"
            )
        self.source = inputs.open_input(self.config)
        self.pairs = inputs.open_truth(self.config)
        self.reference = translations.open_reference(self.config, self.workdir)
        networks = translations.lpips(self.config)
        self.pairwise = translations.pairwise_metrics(networks)
        self.legibility = translations.open_shapes(self.config, self.pairs)
        self._lpips = {name: network.hash for name, network in networks.items()}
        self._description = self._describe()
        self._loaded: dict[str, tuple[dict, dict]] = {}

    def configure(self, changes: dict) -> ConfigDict:
        """The task's config with a run's changes."""
        config = api.load_config(self.name, {**self.overrides, **changes})
        config.sample.sheet = 0
        return adoption.adopted(config, NOWHERE)

    def describe(self) -> dict:
        """The images, the reference and the measures of this task, for results.json."""
        return dict(self._description)

    def _describe(self) -> dict:
        d, count = self.config.data, len(range(len(self.source))[: self.config.sample.limit])
        ids = "\n".join(map(str, self.source.ids))
        pictures = "\n".join(content(self.source, j) for j in range(count))
        return {
            "images": count,
            "image_list_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "images_sha256": hashlib.sha256(pictures.encode()).hexdigest(),
            "split": self.config.sample.split,
            "image_size": d.image_size,
            "filter": d.filter,
            **({} if d.fit == "crop" else {"fit": d.fit}),
            "pairs": d.pairs,
            "shapes": self.legibility is not None,
            "bootstrap": self.config.eval.bootstrap,
            "lpips": self._lpips,
            **self.reference.how,
        }

    def settings(self, run: plan.Run) -> tuple[ConfigDict | None, dict, dict]:
        """A run's config (None for a floor), parameters, and the record of its settings."""
        if run.method in floors.ALL:
            record = {"floor": run.method, "input": repr(self.source), "weights": {}}
            return None, {}, record
        config = self.configure({"method": run.method, "sample.seed": run.seed, **run.changes})
        params, origins = self.load(config)
        return config, params, records.settings_record(config, origins, self.source)

    def has(self, method: str) -> bool:
        """Whether the task has the networks that a method needs."""
        try:
            self.load(self.configure({"method": method}))
        except ValueError as error:
            logging.warning("%s leaves out %s: %s", self.name, method, error)
            return False
        return True

    def load(self, config: ConfigDict) -> tuple[dict, dict[str, str]]:
        """The parameters of a method's networks and their origins; cached."""
        plain = json.loads(config.to_json_best_effort())
        parts = {k: plain[k] for k in ("method", "data", "sde", "weights", *config_lib.GUIDED)}
        if method := diffusion_methods.METHODS.get(config.method):
            parts["domain_images"] = method.domain_images(config[config.method])
        parts["networks"] = config_lib.needed_stages(config)
        parts["match_colours"] = plain["sample"]["match_colours"]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._loaded:
            self._loaded[key] = load_params(config, NOWHERE)
        return self._loaded[key]

    def key(self, record: dict) -> str:
        """The key of a result: a hash of its settings, weights, images and extractors."""
        record = {**record, "weights": {k: hash_of(v) for k, v in record["weights"].items()}}
        content = json.dumps([self.describe(), record], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def is_current(self, point: dict, record: dict) -> bool:
        """Whether a stored point has the images, settings and weights of the current config."""
        if self.key(record) != point["run"]:  # of other images, or measured otherwise
            return False
        if "floor" in record:
            return True
        changes = point.get("changes", {})
        overrides = {"method": point["method"], "sample.seed": point["seed"], **changes}
        try:
            config = self.configure(overrides)
        except ValueError:  # the current config rejects the point's changes
            return False
        if records.settings_record(config, record["weights"], self.source) != record:
            return False
        # Only the task's networks are compared, not those that the run's changes name.
        rest = {k: v for k, v in overrides.items() if not k.startswith("weights.")}
        try:
            origins = self.load(self.configure(rest))[1]
        except ValueError:  # the task has these weights no longer
            return False
        names = [name for name in record["weights"] if f"weights.{name}" not in changes]
        return all(hash_of(record["weights"][n]) == hash_of(origins.get(n, "")) for n in names)


def hash_of(origin: str) -> str:
    """The hash in an origin such as "shipped:NAME (sha256 HASH)", independent of the path."""
    return origin.rsplit("sha256 ", 1)[-1].rstrip(")")
