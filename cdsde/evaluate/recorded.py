"""Whether results were made with the settings that are evaluated: their record against the config.

What selects the images is not compared: each result tells the image that it was made from. Networks
are compared by name and training step, without loading them.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.config.keys import GUIDED_SDES, PUBLISHED
from cdsde.edit import run as edit_run
from cdsde.runtime import records
from cdsde.weights import checkpoint


def check(config: ConfigDict, method: str, workdir, folder: Path, source) -> None:
    """Checks that the record of the results in a folder, if any, has the config's settings.

    Args:
      config: the task.
      method: the method of the results, `config.method` or one of `config.eval.methods`.
      workdir: its work folder.
      folder: the folder of the results.
      source: the images that were translated or edited.

    Raises:
      ValueError: the results are of another method or split, or were made with other settings; the
        message names them.
    """
    if (old := records.read(folder)) is None:
        return
    kind = "edit" if "edit" in old else "sample"
    named, config = config.method, config.copy_and_resolve_references()
    config.method = method
    mode = "edit" if method in config_lib.EDITORS else "sample"
    recorded = {"method": (old if kind == "sample" else old["edit"]).get("method")}
    required = {"method": config.method}
    if config.sample.input is None:
        recorded["split"], required["split"] = old[kind].get("split"), config.sample.split
    if recorded != required:
        raise ValueError(
            f"{folder} holds results of {', '.join(f'{k} {v}' for k, v in recorded.items())}, and "
            f"{', '.join(f'{k} {v}' for k, v in required.items())} is to be evaluated; change "
            f"config.method or config.sample.split, or run --mode={mode} into another folder"
        )
    if config.eval.methods:
        _adopt(config, old[kind])
    new = _of_edits(config, old, source) if mode == "edit" else _of_translations(config, source)
    new = json.loads(json.dumps(new))
    new["weights"] = old["weights"] | (
        {} if mode == "edit" else _other_weights(config, workdir, old)
    )
    new[kind]["split"] = old[kind].get("split")  # is compared above
    for key in _brought(config, named) if named != method else ():
        # The config has it from the method that it names, and not from this one.
        if key in old[kind]:
            new[kind][key] = old[kind][key]
    if new[kind].get("solver", "ancestral") != "ancestral":  # reads no variance
        new[kind]["variance"] = "fixedsmall"
    if "input" in old:
        new["input"] = old["input"]
    advice = f"give --mode=eval the keys that --mode={mode} had, or make the results again"
    records.refuse_others(folder, old, new, f"{advice} in another folder")


def _of_translations(config: ConfigDict, source) -> dict:
    return records.settings_record(config, {}, source)


def _of_edits(config: ConfigDict, old: dict, source) -> dict:
    """The record of edits by the config, with the model of theirs."""
    if not edit_run.has_words(source):
        config = edit_run.with_sentences(config)
    model: Any = SimpleNamespace(digests=old["weights"], files=old.get("model_files"))
    new = edit_run.record_of(config, model)
    return {key: value for key, value in new.items() if key in old}


def _adopt(config: ConfigDict, recorded: dict) -> None:
    """Sets the keys that the method brings, as an override of the method sets them.

    Those that were given by themselves keep their values, and the results tell which they are.
    """
    group = "edit" if config.method in config_lib.EDITORS else "sample"
    given = {f"{group}.{k}" for k, v in config[group].items() if recorded.get(k, ...) == v}
    config_lib.adopt_sampling(config, {"method", *given})


def _brought(config: ConfigDict, method: str) -> set[str]:
    """The keys with the values that a method brings."""
    sde = method in GUIDED_SDES
    brings = GUIDED_SDES[method].brings(config) if sde else PUBLISHED.get(method, {})
    settings = config["sample" if sde else "edit"]
    return {key for key, value in brings.items() if settings[key] == value}


def _other_weights(config: ConfigDict, workdir, old: dict) -> dict[str, str]:
    """`{network: origin}` of the networks that the config has now and the results had not."""
    others = {}
    for stage in config_lib.needed_stages(config):
        before = old["weights"].get(stage)
        try:
            step = checkpoint.newest_whole(workdir, stage)
        except ValueError:  # all of them are broken
            continue
        saved = f"{checkpoint.stage_folder(workdir, stage)}/{step}"
        now = config.weights[stage] if step is None else saved
        if not isinstance(before, str) or now is None:
            continue
        name = before.rsplit(" (sha256 ", 1)[0]
        same = name == now or Path(name).absolute() == Path(now).absolute()
        # Work folders are moved, with their results.
        if step is not None and Path(name).parts[-2:] == Path(now).parts[-2:]:
            same = True
        if not same:
            others[stage] = now
    return others
