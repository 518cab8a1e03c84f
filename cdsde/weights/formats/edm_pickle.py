"""Reads the network inside an EDM snapshot, without running any code of the file.

EDM (and StyleGAN) pickle their objects together with their source text, which plain unpickling
executes. Here such an object becomes a record of its class's name and its state. Tensors lie in
the pickle as whole files of PyTorch's old format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdsde.weights.torch import opcodes, pickle_reader, plain_objects

VERSION = 6  # of torch_utils.persistence
DEPTH = 16  # of modules in modules; EDM's networks have 5
LONGEST_NAME = 80  # characters of a class's name
ARGUMENTS = 100  # of a network; EDM's have 20


class Snapshot(NamedTuple):
    """What a snapshot says of its averaged network.

    Attributes:
      kind: class of the preconditioning, such as "EDMPrecond".
      constants: attributes of the preconditioning, such as `sigma_data`.
      network: class of the network inside, such as "SongUNet".
      arguments: the arguments by which that network was made.
      tensors: parameters and buffers, by the names of a state dict; views of the file's bytes.
    """

    kind: str
    constants: dict[str, Any]
    network: str
    arguments: dict[str, Any]
    tensors: dict[str, np.ndarray]


def load(path: Path) -> Snapshot:
    """The averaged network of a snapshot.

    Raises:
      ValueError: the file would execute code, is damaged, or is no snapshot of EDM.
    """
    work = opcodes.Work()
    names = {**_GLOBALS, _FROM_BYTES: pickle_reader.Storages(work).find}
    try:
        with open(path, "rb") as f:
            snapshot = _snapshot(pickle_reader.Unpickler(f, work, names).load())
        held = sum(tensor.nbytes for tensor in snapshot.tensors.values())
        pickle_reader.check_mentions(held, Path(path).stat().st_size)
        return snapshot
    except opcodes.RefusedError as error:
        raise ValueError(
            f"{path} was refused because it holds something else than a network of EDM ({error}) "
            "and loading it could execute code: get the file again, from its publisher."
        ) from None
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable network snapshot of EDM: {pickle_reader.reason(error)}; "
            "get the file again, from its publisher."
        ) from None


class _Module:
    """A pickled module: the name of its class, and its state, the `__dict__` it had."""

    def __init__(self, kind: str):
        self.kind = kind
        self.state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Takes the state, which the pickle gives after the object."""
        if not isinstance(state, dict):
            raise ValueError(f"the state of a {self.kind} is not a dict")
        self.state = state

    def part(self, name: str) -> dict[str, Any]:
        """A dict of the state, such as `_modules`."""
        if not isinstance(found := self.state.get(name), dict):
            raise ValueError(f"a {self.kind} has no {name}")
        return found


def _snapshot(content: Any) -> Snapshot:
    if not isinstance(content, dict) or not isinstance(ema := content.get("ema"), _Module):
        keys = type(content).__name__
        if isinstance(content, dict):
            keys = [str(key)[:LONGEST_NAME] for key in list(content)[:6]]
        raise ValueError(f"it has no network under 'ema', only {keys}")
    if not isinstance(model := ema.part("_modules").get("model"), _Module):
        raise ValueError(f"its {ema.kind} has no network")
    if model.state.get("_init_args"):
        raise ValueError("its network was made by arguments without names, which cannot be told")
    arguments = model.part("_init_kwargs")
    if len(arguments) > ARGUMENTS:
        raise ValueError(f"its network was made by more than {ARGUMENTS} arguments")
    return Snapshot(ema.kind, ema.state, model.kind, arguments, _tensors(ema))


def _tensors(module: _Module) -> dict[str, np.ndarray]:
    """Parameters and buffers of a module and of those in it."""
    found: dict[str, np.ndarray] = {}
    seen: set[int] = set()

    def visit(module: Any, prefix: str, depth: int) -> None:
        # Modules in themselves, or in each other many times over, would never end.
        if not isinstance(module, _Module) or id(module) in seen or depth > DEPTH:
            raise ValueError(f"{prefix}: no module, or one that stands in several places")
        seen.add(id(module))
        for name, value in {**module.part("_parameters"), **module.part("_buffers")}.items():
            if value is None:
                continue
            if not isinstance(value, np.ndarray):
                raise ValueError(f"{prefix}{name} is not a tensor")
            found[f"{prefix}{name}"] = value
        for name, child in module.part("_modules").items():
            if child is not None:
                visit(child, f"{prefix}{name}.", depth + 1)

    visit(module, "", 0)
    return found


def _persistent(about: Any) -> _Module:
    """EDM's `_reconstruct_persistent_obj`, without the source text."""
    if not isinstance(about, dict):
        raise ValueError("an object of EDM has no class")
    kind, version = about["class_name"], about["version"]
    if about["type"] != "class" or not isinstance(kind, str) or len(kind) > LONGEST_NAME:
        raise ValueError("an object of EDM has no class")
    if version != VERSION:
        told = version if isinstance(version, int) else type(version).__name__
        raise ValueError(f"a {kind} has the version {told} of persistence, not {VERSION}")
    module = _Module(kind)
    module.build(about["state"])
    return module


_FROM_BYTES = ("torch.storage", "_load_from_bytes")
_GLOBALS = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch.nn.modules.container", "ModuleDict"): lambda: _Module("ModuleDict"),
    **plain_objects.NUMPY_SCALARS,
}
