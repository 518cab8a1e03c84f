"""Says whether a checkpoint can be read, before Orbax reads it.

Orbax reports a truncated or missing file with hundreds of lines from several threads. This module
reads every file once, array after array, with the library that Orbax uses for it.
"""

from __future__ import annotations

import json
from pathlib import Path

import tensorstore


def fault(step: Path, items: tuple[str, ...]) -> str | None:
    """What is wrong with the folder of a step, in a few words; None if its items can be read.

    Args:
      step: the folder of a step.
      items: names of the items to read, such as "state" and "ema".
    """
    try:
        _read_json(step / "_CHECKPOINT_METADATA")
        for item in items:
            _read_item(step / item)
    except _Fault as reason:
        return str(reason)
    except Exception as error:  # TensorStore raises ValueError with a long text, and other types
        return str(error).split(":")[0].split("\n")[0][:80] or type(error).__name__
    return None


class _Fault(Exception):
    """A file that is missing or damaged."""


def _read_item(folder: Path) -> None:
    if not folder.is_dir():
        raise _Fault(f"{folder.name}/ is missing")
    metadata = _read_json(folder / "_METADATA")
    for path in (folder / "_sharding", *folder.glob("array_metadatas/*")):
        if path.exists():
            _read_json(path)
    values = [leaf["value_metadata"] for leaf in metadata["tree_metadata"].values()]
    expected = sum(not value.get("skip_deserialize") for value in values)
    base = {"driver": "file", "path": f"{folder}/"}
    try:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        names = [key.decode() for key in store.list().result()]
        arrays = [name.rsplit("/", 1)[0] for name in names if name.endswith("/.zarray")]
        for name in arrays:
            spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": name}}
            spec |= {"fill_missing_data_reads": False}
            tensorstore.open(spec).result().read().result()
    except Exception as error:
        raise _Fault(f"the arrays of {folder.name}/ cannot be read") from error
    if len(arrays) < expected:
        raise _Fault(f"{folder.name}/ has {len(arrays)} of its {expected} arrays")


def _read_json(path: Path) -> dict:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise _Fault(f"{where} is missing")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise _Fault(f"{where} is damaged") from error
