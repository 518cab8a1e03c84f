"""Says whether a checkpoint can be read, before Orbax reads it.

Orbax reports a truncated or missing file with hundreds of lines from several threads. This module
reads every file once, array after array, with the library that Orbax uses for it.
"""

from __future__ import annotations

import json
from pathlib import Path

import tensorstore

# Groups of a saved config that are read again.
GROUPS = "autoencoder classifier cut data encoder latent score sde train".split()


def fault(step: Path, items: tuple[str, ...]) -> str | None:
    """What is wrong with the folder of a step, in a few words; None if it can be read.

    It can be if its items and the config of its training can.

    Args:
      step: the folder of a step.
      items: names of the items to read, such as "state" and "ema".
    """
    try:
        _read_json(step / "_CHECKPOINT_METADATA")
        config(step)
        for item in items:
            _read_item(step / item)
    except _Fault as reason:
        return str(reason)
    except Exception as error:  # TensorStore raises ValueError with a long text, and other types
        return str(error).split(":")[0].split("\n")[0][:80] or type(error).__name__
    return None


def config(step: Path) -> dict:
    """The config of the training in the folder of a step.

    Raises:
      ValueError: the file is missing or damaged; a few words.
    """
    found = _read_json(step / "config" / "metadata")
    groups = [found.get(name, {}) for name in GROUPS] if isinstance(found, dict) else [None]
    if not all(isinstance(group, dict) for group in groups):
        raise _Fault("config/metadata is damaged")
    data, published = found.get("data", {}), found.get("score", {}).get("published")
    names = [data.get(key, "") for key in ("source", "target")]
    domains = data.get("domains") or []
    names += domains if isinstance(domains, list) else [None]
    if not all(isinstance(name, str) for name in (*names, published or "")):
        raise _Fault("config/metadata is damaged")
    return found


class _Fault(ValueError):
    """A file that is missing or damaged."""


def _read_item(folder: Path) -> None:
    if not folder.is_dir():
        raise _Fault(f"{folder.name}/ is missing")
    metadata = _read_json(folder / "_METADATA")
    for path in (folder / "_sharding", *folder.glob("array_metadatas/*")):
        if path.exists():
            _read_json(path)
    try:
        values = [leaf["value_metadata"] for leaf in metadata["tree_metadata"].values()]
    except (TypeError, KeyError, AttributeError):  # JSON of another shape
        raise _Fault(f"{folder.name}/_METADATA is damaged") from None
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
