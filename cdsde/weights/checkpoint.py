"""Checkpoints with Orbax, which no other module uses.

The folder of a stage, WORKDIR/checkpoints/STAGE, has one subfolder per step, with the items `state`
(parameters, optimiser, step), `ema` (the averaged parameters, for sampling) and `config`. The step
also determines the position in the training data. All processes save and restore together, each
process its shards of the arrays; a run may resume with another number of processes or devices.
Saves are asynchronous and atomic: a run killed during a save leaves a temporary folder that the
next run ignores.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath


def stage_folder(workdir, stage: str) -> epath.Path:
    """Absolute path of a stage's checkpoints."""
    return epath.Path(workdir).resolve() / "checkpoints" / stage


def manager(workdir, stage: str, keep: int = 2) -> ocp.CheckpointManager:
    """A manager for writing that keeps `keep` steps; as a context it finishes the last save."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(stage_folder(workdir, stage), options=options)


def save(m: ocp.CheckpointManager, step: int, state, ema, config: dict) -> None:
    """Starts a save and returns as soon as the arrays are copied.

    Raises:
      RuntimeError: Orbax refused because a later step exists.
    """
    if m.latest_step() == step:
        return
    saved = m.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            ema=ocp.args.StandardSave(ema),
            config=ocp.args.JsonSave(config),
        ),
    )
    if not saved:
        raise RuntimeError(
            f"checkpoint of step {step} was not written to {m.directory}: step {m.latest_step()} "
            "is already there; use another --workdir"
        )


def save_imported(workdir, stage: str, params, config: dict) -> epath.Path:
    """Writes foreign parameters as step 0 of a stage, for sampling to load; returns the folder.

    Raises:
      ValueError: the stage already has a checkpoint.
    """
    folder = stage_folder(workdir, stage)
    if latest_step(workdir, stage) is not None:
        raise ValueError(f"{folder} already holds a checkpoint; use another --workdir or delete it")
    with ocp.CheckpointManager(folder) as m:
        args = ocp.args.Composite(
            ema=ocp.args.StandardSave(params), config=ocp.args.JsonSave(config)
        )
        m.save(0, args=args)
    return folder


def restore(m: ocp.CheckpointManager, step: int, state, ema):
    """Restores a step with the shardings of the trees `state` and `ema` (arrays or shapes).

    Returns:
      `(state, ema)`.

    Raises:
      ValueError: the saved parameters have other shapes, because the config has changed.
    """
    _check_shapes(m, step, "ema", ema)
    restored = m.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(state)),
            ema=ocp.args.StandardRestore(_abstract(ema)),
        ),
    )
    return restored["state"], restored["ema"]


def latest_step(workdir, stage: str) -> int | None:
    """Step of the newest finished checkpoint of a stage, or None."""
    folder = stage_folder(workdir, stage)
    if not folder.exists():
        return None
    steps = ocp.utils.checkpoint_steps(folder)
    return max(steps) if steps else None


def open_ema(workdir, stage: str, shapes):
    """The averaged parameters of a stage's newest checkpoint, with the shardings of `shapes`.

    Raises:
      ValueError: there is no checkpoint, or its shapes differ because the config has changed.
    """
    step = latest_step(workdir, stage)
    if step is None:
        raise ValueError(f"no checkpoint of '{stage}' under {stage_folder(workdir, stage)}")
    m = ocp.CheckpointManager(stage_folder(workdir, stage))
    _check_shapes(m, step, "ema", shapes)
    args = ocp.args.Composite(ema=ocp.args.StandardRestore(_abstract(shapes)))
    return m.restore(step, args=args)["ema"]


def saved_config(workdir, stage: str) -> dict:
    """The resolved config of the run that wrote a stage's newest checkpoint."""
    return config_of_step(stage_folder(workdir, stage), latest_step(workdir, stage))


def config_of_step(directory, step: int | None) -> dict:
    """The resolved config of the run that wrote a step; `directory` is a stage's folder."""
    folder = Path(directory) / str(step) / "config"
    return json.loads((folder / "metadata").read_text())


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _check_shapes(m: ocp.CheckpointManager, step: int, item: str, tree) -> None:
    """Raises a ValueError that names differing parameters; Orbax's error names only shapes."""
    path = epath.Path(m.directory) / str(step) / item
    saved = ocp.StandardCheckpointHandler().metadata(path)
    actual = {_name(p): tuple(v.shape) for p, v in jax.tree_util.tree_leaves_with_path(saved)}
    expected = {_name(p): tuple(v.shape) for p, v in jax.tree_util.tree_leaves_with_path(tree)}
    wrong = [k for k in sorted(expected | actual) if actual.get(k) != expected.get(k)]
    if wrong:
        shown = "; ".join(
            f"{k}: saved {actual.get(k, 'nothing')}, config asks for {expected.get(k, 'nothing')}"
            for k in wrong[:3]
        )
        raise ValueError(
            f"the checkpoint in {m.directory}/{step} does not fit the config in {len(wrong)} "
            f"parameters ({shown}); use the config it was trained with or another --workdir"
        )


def _name(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
