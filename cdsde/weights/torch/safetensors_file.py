"""Reads safetensors files whose headers are not trusted.

Sizes that a header claims are compared with the file before anything is allocated. Arrays are read
one by one into memory of their own, which a caller can free one by one.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

HEADER = 32 * 2**20  # largest header, in bytes; that of a thousand arrays has 0.1 MB
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class _Place(NamedTuple):
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, in the types that it has.

    Raises:
      ValueError: the file is damaged, or its header does not describe it.
    """
    return _opened(path, lambda f, places: {n: _read(f, place) for n, place in places.items()})


def names(path: str | Path) -> list[str]:
    """The names of the arrays of a file, of which only the header is read.

    Raises:
      ValueError: as `load`.
    """
    return _opened(path, lambda f, places: list(places))


def _opened(path: str | Path, read: Callable) -> Any:
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size - 8, HEADER):
                raise ValueError(f"its header claims {length:,} bytes of {size:,}")
            return read(f, _described(json.loads(f.read(length)), 8 + length, size))
    except (struct.error, ValueError, RecursionError) as error:
        reason = "it is too short" if isinstance(error, struct.error) else str(error)
        raise ValueError(
            f"{path} is not a readable safetensors file: {reason}; get the file again"
        ) from None


def _read(f, place: _Place) -> np.ndarray:
    f.seek(place.start)
    return np.fromfile(f, place.dtype, math.prod(place.shape)).reshape(place.shape)


def _described(header: Any, begin: int, size: int) -> dict[str, _Place]:
    """The arrays that a header lists; together they fill the file from byte `begin` on."""
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    found, place = {}, begin
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: _offsets(*item)):
        start, end = _offsets(name, entry)
        dtype, shape = DTYPES.get(str(entry.get("dtype"))), entry.get("shape")
        if dtype is None:
            raise ValueError(f"{name} has the type {entry.get('dtype')}, which is not supported")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} has no valid shape")
        if begin + start != place or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the size of {name} is not that of its shape and place")
        found[name], place = _Place(place, dtype, tuple(shape)), begin + end
    if place != size:
        raise ValueError(f"its arrays end at byte {place:,}, and the file at {size:,}")
    if not found:
        raise ValueError("it holds no arrays")
    return found


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or {type(n) for n in offsets} != {int}:
        raise ValueError(f"{name} has no place in the file")
    return offsets[0], offsets[1]
