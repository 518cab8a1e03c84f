"""Guiding networks trained for few steps, for the part "convergence"."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.benchmark.task import Task
from cdsde.train import loop
from cdsde.weights import checkpoint, exported, resolve


def trained(task: Task, stage: str, steps: int) -> Path:
    """The weights file of a guiding network after `steps` training steps; trains it if missing.

    Encoder and classifier have the same architecture, optimiser, constant rate and number of
    network evaluations per step: two views per image for the encoder, twice as many images for the
    classifier. Since the rate is constant, a longer training continues a shorter one. Tasks with
    the same domains share the networks.
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
        exported.save(path, config, stage, params, {"step": steps})
    return path


def training_hash(config: ConfigDict, stage: str) -> str:
    """A hash of everything that a guiding network's training depends on."""
    plain = json.loads(config.to_json_best_effort())
    # Not which of the domains is the source and which the target.
    data = {k: v for k, v in plain["data"].items() if k not in ("source", "target")}
    data["domains"] = config_lib.domains(config)
    skipped = {"steps", "checkpoint_every", *config_lib.STAGES} - {stage}
    train = {k: v for k, v in plain["train"].items() if k not in skipped}
    parts = [data, train, *(plain[k] for k in (stage, "sde", "dtype", "remat"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
