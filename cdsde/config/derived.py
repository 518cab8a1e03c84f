"""What follows from the keys of a config: domains, stages, levels; and keys by dotted name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ml_collections import ConfigDict

from cdsde.config.keys import NEEDS


def key_paths(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of all leaves."""
    names = []
    for name in config:
        value, path = config[name], f"{prefix}{name}"
        names += key_paths(value, f"{path}.") if isinstance(value, ConfigDict) else [path]
    return names


def nearest(wanted: str, existing: Iterable[str], most: int = 3) -> str:
    """The names nearest to a mistyped one, for an error message.

    A dotted key is compared as a whole and by its last part, so that `train.batchsize` and
    `batch_size` both lead to `train.batch_size`.
    """
    existing = list(existing)
    tail = {name: name.rsplit(".", 1)[-1] for name in existing}
    last = wanted.rsplit(".", 1)[-1]

    def score(name: str) -> float:
        return max(
            difflib.SequenceMatcher(None, wanted, name).ratio(),
            0.99 * difflib.SequenceMatcher(None, last, tail[name]).ratio(),
        )

    # Of names that are as near, the shorter one.
    return ", ".join(sorted(existing, key=lambda name: (-score(name), len(name)))[:most])


def needed_stages(method: str) -> tuple[str, ...]:
    """The networks that a method runs, in the order in which they are trained."""
    return NEEDS[method]


def stage_training(config: ConfigDict, stage: str) -> ConfigDict:
    """`config.train.STAGE` with `config.train.{steps,batch_size}` put in where they are set."""
    training = config.train[stage].copy_and_resolve_references()
    for name in ("steps", "batch_size"):
        if config.train[name] is not None:
            training[name] = config.train[name]
    return training


def sources(config: ConfigDict) -> tuple[str, ...]:
    """The source domains: `data.source` split at commas."""
    return tuple(name.strip() for name in config.data.source.split(",") if name.strip())


def domains(config: ConfigDict) -> tuple[str, ...]:
    """What encoder and classifier tell apart: `data.domains`, or the sources and the target."""
    named = tuple(config.data.domains) or (*sources(config), config.data.target)
    return tuple(dict.fromkeys(named))


def named_methods(config: ConfigDict) -> tuple[str, ...]:
    """What `eval.methods` names: methods, or of edits by words editors."""
    return tuple(m.strip() for m in config.eval.methods.split(",") if m.strip())


def eval_methods(config: ConfigDict) -> tuple[str, ...]:
    """The methods (or editors) that `--mode=eval` looks at: `eval.methods`, or the config's own."""
    own = config.edit.method if config.method == "edit" else config.method
    return named_methods(config) or (own,)


def get(config: ConfigDict, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def start_index(config: ConfigDict) -> int:
    """M: `config.sample.start`, or the method's own where that is not set."""
    start = config.sample.start
    return config[config.method].start if start is None else start
