"""Guiding networks of few training steps, for the part "convergence"."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.benchmark.task import Task
from cdsde.train import loop
from cdsde.weights import checkpoint, resolve


def trained(task: Task, stage: str, steps: int) -> Path:
    """Weights of a guiding network after so many steps, trained here where they are missing.

    Encoder and classifier have one architecture, optimiser, constant rate and number of network
    evaluations a step: two views of an image for the one, twice the images for the other. The
    rate is the same from the first step, so that a shorter training is the beginning of a longer
    one, and the longer goes on from it. Tasks of the same domains share them.
    """
    batch = task.config.train.encoder.batch_size
    config = task.configure(
        {
            "train.stage": stage,
            "train.steps": steps,
            "train.batch_size": batch if stage == "encoder" else 2 * batch,
            f"train.{stage}.schedule": "constant",
            f"train.{stage}.warmup": 0,
            "train.checkpoint_every": steps,
        }
    )
    folder = task.workdir.parent / "convergence" / f"{stage}-{training_hash(config, stage)}"
    path = folder / f"{steps}.safetensors"
    if not path.exists():
        loop.train_stage(config, folder, stage)
        shapes = resolve.shapes(config, stage)
        params = checkpoint.open_ema(folder, stage, shapes)
        resolve.save(path, config, stage, params, {"step": steps})
    return path


def training_hash(config: ConfigDict, stage: str) -> str:
    """A hash of what a guiding network's training depends on, whichever domains are translated."""
    of = json.loads(config.to_json_best_effort())
    data = {k: v for k, v in of["data"].items() if k not in ("source", "target")}
    data["domains"] = config_lib.domains(config)
    skipped = {"steps", "checkpoint_every", *config_lib.STAGES} - {stage}
    train = {k: v for k, v in of["train"].items() if k not in skipped}
    parts = [data, train, *(of[k] for k in (stage, "sde", "dtype", "remat"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
