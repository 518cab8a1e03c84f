"""Checkpoints with Orbax, which no other module uses.

The folder of a stage, WORKDIR/checkpoints/STAGE, has one subfolder per step, with the items `state`
(parameters, optimiser, step), `ema` (the averaged parameters, for sampling) and `config`. The step
also determines the position in the training data. All processes save and restore together, each
process its shards of the arrays; a run may resume with another number of processes or devices.
Saves are asynchronous and atomic: a run killed during a save leaves a temporary folder that the
next run ignores.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from cdsde.runtime import files, mesh
from cdsde.weights import wholeness

OVERHEAD = 2**18  # bytes of a checkpoint beside its arrays
SET_ASIDE = "broken-"  # prefix of the folder of a broken step that a training has found


def stage_folder(workdir, stage: str) -> epath.Path:
    """Absolute path of a stage's checkpoints."""
    return epath.Path(workdir).resolve() / "checkpoints" / stage


def manager(workdir, stage: str, keep: int = 2) -> ocp.CheckpointManager:
    """A manager for writing that keeps `keep` steps; as a context it finishes the last save."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(stage_folder(workdir, stage), options=options)


def save(m: ocp.CheckpointManager, step: int, state, ema, config: dict) -> None:
    """Starts a save and returns as soon as the arrays are copied.

    Raises:
      OSError: there is no space for it.
      RuntimeError: Orbax refused because a later step exists.
    """
    if m.latest_step() == step:
        return
    m.wait_until_finished()  # which may make room: the save before deletes an older step
    _check_space(epath.Path(m.directory), step, (state, ema))
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
    check_none(workdir, stage)
    folder = stage_folder(workdir, stage)
    _check_space(folder, 0, params)
    with ocp.CheckpointManager(folder) as m:
        args = ocp.args.Composite(
            ema=ocp.args.StandardSave(params), config=ocp.args.JsonSave(config)
        )
        m.save(0, args=args)
    return folder


def check_none(workdir, stage: str) -> None:
    """Checks that a stage has no checkpoint yet.

    Raises:
      ValueError: it has one.
    """
    if latest_step(workdir, stage) is not None:
        folder = stage_folder(workdir, stage)
        raise ValueError(f"{folder} already holds a checkpoint; use another --workdir or delete it")


def _check_space(folder: epath.Path, step: int, tree) -> None:
    """Raises an OSError where the disk has no space for a tree of arrays.

    Orbax reports a full disk late, with hundreds of lines, and leaves an unfinished folder.
    """
    target = Path(folder) / str(step)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + OVERHEAD
    if not mesh.of_first_process(files.free_space(target) >= needed):
        raise files.disk_full(target, needed)


def restore(m: ocp.CheckpointManager, step: int, state, ema, config: dict, keys: Sequence[str]):
    """Restores a step with the shardings of the trees `state` and `ema` (arrays or shapes).

    Args:
      m: the manager of the stage.
      step: the step.
      state, ema: the trees, with the optimiser's state in `state["opt_state"]`.
      config: the config of this run, as `save` takes it.
      keys: the keys that decide which numbers an optimiser keeps.

    Returns:
      `(state, ema)`.

    Raises:
      ValueError: the saved parameters have other shapes, or the saved optimiser keeps other
        numbers, because the config has changed.
    """
    folder = epath.Path(m.directory) / str(step)
    _check_shapes(folder, "ema", ema)
    _check_optimiser(folder, state["opt_state"], config, keys)
    restored = m.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(state)),
            ema=ocp.args.StandardRestore(_abstract(ema)),
        ),
    )
    return restored["state"], restored["ema"]


def latest_step(workdir, stage: str) -> int | None:
    """Step of the newest finished checkpoint of a stage, or None; it may be broken."""
    return max(_steps(workdir, stage), default=None)


def newest_whole(workdir, stage: str, training: bool = False) -> int | None:
    """Step of the newest checkpoint that can be read, or None if there is no checkpoint.

    Newer ones that are broken are named in a warning.

    Args:
      workdir, stage: the stage of a work folder.
      training: whether the training state is needed, too. Imported weights, step 0, have none.

    Raises:
      ValueError: there are checkpoints, and all of them are broken; or a file is where their
        folder should be.
    """
    folder, faults = stage_folder(workdir, stage), {}
    for step in sorted(_steps(workdir, stage), reverse=True):
        items = ("state", "ema") if training and step else ("ema",)
        faults[step] = wholeness.fault(Path(folder / str(step)), items)
        if faults[step] is None:
            break
    broken = {step: reason for step, reason in faults.items() if reason}
    if not broken:
        return max(faults, default=None)
    if len(broken) == len(faults):
        named = "; ".join(f"step {step}: {reason}" for step, reason in broken.items())
        raise ValueError(
            f"no checkpoint in {folder} is whole ({named}); put a copy of one there, or delete the "
            "folder to begin again"
        )
    whole = min(faults)
    _warn_of_broken(str(folder), stage, tuple(broken.items()), whole, training)
    return whole


@functools.cache  # a program asks several times, and says it once
def _warn_of_broken(folder: str, stage: str, broken: tuple, whole: int, training: bool) -> None:
    for step, reason in broken:
        logging.warning("the checkpoint %s/%d is broken: %s", folder, step, reason)
    logging.warning("the newest whole checkpoint of %s is step %d: it is taken", stage, whole)


def set_aside_broken(workdir, stage: str) -> None:
    """Renames broken checkpoints that are newer than the newest whole one, for a training.

    Raises:
      ValueError: there are checkpoints, and all of them are broken.
    """
    folder, whole = stage_folder(workdir, stage), newest_whole(workdir, stage, training=True)
    newer = [step for step in _steps(workdir, stage) if step > (whole or 0)]
    mesh.barrier("checkpoints are examined")
    for step in newer if jax.process_index() == 0 else ():
        target = folder / f"{SET_ASIDE}{step}"
        if target.exists():
            target.rmtree()
        (folder / str(step)).rename(target)
        logging.warning("%s/%d is now %s", folder, step, target)
    mesh.barrier("broken checkpoints are set aside")


def _steps(workdir, stage: str) -> list[int]:
    folder = stage_folder(workdir, stage)
    for place in (folder.parent.parent, folder.parent, folder):
        if place.exists() and not place.is_dir():
            raise ValueError(
                f"{place} is a file, and checkpoints lie in a folder of that name; move the file "
                "away, or use another --workdir"
            )
    return list(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def open_ema(workdir, stage: str, shapes, step: int | None = None):
    """The averaged parameters of a stage's newest whole checkpoint, sharded as `shapes`.

    Args:
      workdir, stage: the stage of a work folder.
      shapes: the tree of parameters as ShapeDtypeStructs.
      step: the result of `newest_whole`, where it is known.

    Raises:
      ValueError: there is no checkpoint, or its shapes differ because the config has changed.
    """
    step = newest_whole(workdir, stage) if step is None else step
    if step is None:
        raise ValueError(f"no checkpoint of '{stage}' under {stage_folder(workdir, stage)}")
    folder = stage_folder(workdir, stage) / str(step)
    _check_shapes(folder, "ema", shapes)
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / "ema", _abstract(shapes))


def saved_config(workdir, stage: str, step: int | None = None) -> dict:
    """The resolved config of the run that wrote a checkpoint of a stage (default: the newest).

    Raises:
      ValueError: the file is missing or damaged.
    """
    step = latest_step(workdir, stage) if step is None else step
    return config_of_step(stage_folder(workdir, stage), step)


def config_of_step(directory, step: int | None) -> dict:
    """The resolved config of the run that wrote a step; `directory` is a stage's folder.

    Raises:
      ValueError: the file is missing or damaged.
    """
    folder = Path(directory) / str(step)
    try:
        return wholeness.config(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}/config/metadata, the config of the training, is missing or damaged; put a "
            "copy there, or take another checkpoint"
        ) from error


def _abstract(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _check_optimiser(folder: epath.Path, opt_state, config: dict, keys: Sequence[str]) -> None:
    """Raises a ValueError that names the keys because of which the optimiser's state differs."""
    saved = ocp.StandardCheckpointHandler().metadata(folder / "state")["opt_state"]
    if _shapes(saved) == _shapes(opt_state):
        return
    path = Path(folder) / "config" / "metadata"
    before = json.loads(path.read_text()) if path.is_file() else {}
    values = {key: (_value(before, key), _value(config, key)) for key in keys}
    changed = "; ".join(
        f"config.{key} is {now}, and was {then}"
        for key, (then, now) in values.items()
        if then != now
    )
    raise ValueError(
        f"the optimiser does not fit the checkpoint in {folder} "
        f"({changed or 'it keeps other numbers'}); go on with the values it was trained with, or "
        "begin in another --workdir"
    )


def _value(config: dict, key: str):
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _check_shapes(folder: epath.Path, item: str, tree) -> None:
    """Raises a ValueError that names differing parameters; Orbax's error names only shapes."""
    actual = _shapes(ocp.StandardCheckpointHandler().metadata(folder / item))
    expected = _shapes(tree)
    wrong = [k for k in sorted(expected | actual) if actual.get(k) != expected.get(k)]
    if wrong:
        shown = "; ".join(
            f"{k}: saved {actual.get(k, 'nothing')}, config asks for {expected.get(k, 'nothing')}"
            for k in wrong[:3]
        )
        raise ValueError(
            f"the checkpoint in {folder} does not fit the config in {len(wrong)} "
            f"parameters ({shown}); use the config it was trained with or another --workdir"
        )


def _name(path) -> str:
    # Keys of dicts, fields of tuples with names, positions.
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(map(str, parts))
