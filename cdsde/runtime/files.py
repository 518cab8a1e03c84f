"""Atomic writing of files: a file is complete or does not exist."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED: set[Path] = set()  # the temporary files that this process writes now


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path to write to, and moves that file to `path` at the end.

    A reader never sees an incomplete file, and a killed program leaves the old one. The temporary
    file has the same extension. Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    _UNFINISHED.add(temporary)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        _UNFINISHED.discard(temporary)


def discard_unfinished() -> None:
    """Deletes the temporary files of this process, for an end in the middle of everything."""
    for temporary in list(_UNFINISHED):
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes a JSON file atomically, indented and with sorted keys."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
