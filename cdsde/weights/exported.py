"""Files of `--mode=export --config.export.format=cdsde`: safetensors with a card beside."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from cdsde.runtime import fields, files
from cdsde.runtime.trees import flatten, halved, unflatten
from cdsde.weights.knowledge import architecture
from cdsde.weights.torch import safetensors_file


def save(path: Path, config: ConfigDict, stage: str, params, card: dict) -> None:
    """Writes parameters as safetensors, and beside them the card with the architecture.

    Arrays are float16, or float32 where they have values that float16 has not.
    """
    half = {name: halved(value) for name, value in flatten(params).items()}
    files.write_bytes(path, safetensors.numpy.save(half))
    files.write_json(
        path.with_suffix(".json"), {**card, "architecture": architecture(config, stage)}
    )


def read_card(path: Path) -> dict:
    """The card beside a file: the architecture, and how the network was trained.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    path = path.with_suffix(".json")
    card = fields.read(path, "the card of a network lies beside its file")
    architecture, data = card.get("architecture"), card.get("data", {})
    if not isinstance(architecture, dict) or not isinstance(architecture.get("network"), dict):
        raise ValueError(f"{path} has no architecture of a network; get the file again")
    names = [data.get(key, "") for key in ("source", "target")] if isinstance(data, dict) else [0]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} does not name the domains of its training; get the file again")
    return card


def read_parameters(path: Path, shapes) -> dict:
    """The parameters in a file, float32.

    Args:
      path: the file.
      shapes: the parameter tree that is expected, of leaves with a shape.

    Raises:
      ValueError: the file is damaged, or holds other parameters.
    """
    found = safetensors_file.load(path)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    expected = {"/".join(k.key for k in place): leaf.shape for place, leaf in leaves}
    wrong = [
        name
        for name in sorted(expected | found)
        if name not in found or found[name].shape != expected.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{path} does not hold the network that its card describes: {len(wrong)} parameters "
            f"differ (first: {wrong[0]}); get the file again"
        )
    return unflatten({name: np.asarray(value, np.float32) for name, value in found.items()})
