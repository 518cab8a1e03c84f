"""What the readers of PyTorch files share: a configuration beside the file, and the fitting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from cdsde.runtime import fields as json_fields
from cdsde.weights.diffusers import networks
from cdsde.weights.torch import convert


def config_path(path: Path) -> Path:
    """`NAME.config.json` of `NAME.pt`."""
    return path.with_suffix(".config.json")


def config_of(path: Path, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The configuration of a file: the one that is passed, or the one beside it, or None.

    Raises:
      ValueError: the one beside the file is damaged.
    """
    beside = config_path(path)
    if config is not None or not beside.exists():
        return config
    return json_fields.read(beside, "it describes the network beside it")


def tell_assumed(path: Path, assumed: str) -> None:
    """Says what the weights leave open, where no configuration says it."""
    beside = config_path(path).name
    logging.warning("%s does not say all, and there is no %s: taking %s.", path, beside, assumed)


def section(config: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    """A part of a configuration.

    Raises:
      ValueError: there is no such part.
    """
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} has no object '{name}' of fields; add what the trainer had")
    return found


def check_same(told: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Checks that a configuration says nothing else than the weights do.

    Raises:
      ValueError: they differ; the message lists the fields.
    """
    wrong = {name: (told[name], found[name]) for name in told.keys() & found.keys()}
    listed = [f"{n} is {a}, in the weights {b}" for n, (a, b) in sorted(wrong.items()) if a != b]
    if listed:
        raise ValueError(
            f"the configuration of {path} contradicts its weights: {'; '.join(listed)}; "
            "correct the configuration, or get the one of this file"
        )


def file_of(path: str | Path) -> Path:
    """The path of a file that exists.

    Raises:
      ValueError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path of the weights.")
    return path


def fitted(module: Any, inputs: tuple, state_dict: dict[str, np.ndarray], path: Path) -> dict:
    """`{"params": tree}` of a module whose names are the published ones; `state_dict` is consumed.

    Raises:
      ValueError: keys or shapes do not fit, or fields of the module do not.
    """
    try:
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return convert.fit(shapes, state_dict, networks.published, consume=True)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).rstrip('.')}.") from None


def tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor fields, with tuples in place of lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
