"""Which reader opens a published score network; contents tell, not names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cdsde.weights import hub
from cdsde.weights.formats import diffusers_unet, dit, edm, guided_diffusion, score_sde
from cdsde.weights.formats.opened import Opened
from cdsde.weights.torch import convert, layouts, pickle_reader, plain_objects, safetensors_file

READERS: dict[str, Callable[[Path], Opened]] = {
    "diffusers": diffusers_unet.read,
    "edm": edm.read,
    "score_sde": score_sde.read,
    "dit": dit.read,
    "guided_diffusion": guided_diffusion.read,
}
OBJECTS = {**plain_objects.NUMPY_SCALARS, **plain_objects.RECORDS}


def format_of(name: str, importing: bool = False) -> str | None:
    """The format of what `config.weights.score` names, a key of `READERS`.

    None for what the config's keys describe: shipped weights, files of cdsde, and, where
    `importing`, networks of guided-diffusion without classes, which --mode=import checks against
    the keys, so that they can be trained on.

    Raises:
      ValueError: the file is damaged, would execute code, or cannot be had from a hub.
    """
    if name.startswith("shipped:"):
        return None
    path = hub.local(name)
    if path.is_dir():
        described = any((path / file).is_file() for file in ("model_index.json", "config.json"))
        return "diffusers" if described or (path / "unet").is_dir() else None
    if not path.is_file():
        return None
    if path.suffix == ".pkl":
        return "edm"
    if path.suffix == ".safetensors":
        return _of_names(safetensors_file.names(path), importing)
    if path.suffix not in convert.TORCH_SUFFIXES:
        return None
    return pickle_reader.load(path, OBJECTS, lambda content: _told_by(content, importing))


def read(name: str) -> Opened:
    """The published network that a name stands for.

    Raises:
      ValueError: it is in none of the formats, or its reader refuses it.
    """
    kind = format_of(name)
    if kind is None:
        raise ValueError(f"{name} is in none of the formats {', '.join(READERS)}")
    return READERS[kind](hub.local(name))


def _told_by(content: Any, importing: bool) -> str | None:
    """The format of the contents of a PyTorch file, of whose tensors nothing is read."""
    if not isinstance(content, Mapping):
        return None
    average = content.get("ema")
    if isinstance(average, Mapping) and "shadow_params" in average:
        return "score_sde"
    inner = [content[key] for key in convert.WRAPPERS if isinstance(content.get(key), Mapping)]
    names = {str(name) for part in (content, *inner) for name in part}
    if any(name.startswith("x_embedder.") for name in names):
        return "dit"
    return _of_names(names, importing)


def _of_names(names: Iterable[str], importing: bool) -> str | None:
    """The format of a state dict with these names, if it is one of guided-diffusion."""
    names = {name.removeprefix("module.") for name in names}
    if not all(layouts.has_prefix(names, f"{part}_blocks.0.0.") for part in ("input", "output")):
        return None
    return "guided_diffusion" if "label_emb.weight" in names or not importing else None
