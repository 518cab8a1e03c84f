"""Reads safetensors files whose headers are not trusted.

Sizes that a header claims are compared with the file before anything is allocated. Arrays are read
one by one into memory of their own, which a caller can free one by one.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cdsde.runtime import fields
from cdsde.weights.torch import sizes

# Largest header, in bytes. An array takes 100 to 150 of them, so that the 1 700 of SDXL's UNet come
# to 0.2 MB and this is enough for 14 000. Python makes objects of 20 times the size of a JSON text.
HEADER = 2 * 2**20
SHOWN = 80  # characters of a name in a message
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
            if length > size - 8:
                raise ValueError(f"its header claims {length:,} bytes of {size:,}")
            if length > HEADER:
                raise ValueError(f"its header has {length:,} bytes, more than {HEADER:,}")
            header = fields.parsed(f.read(length).decode("utf-8"))
            return read(f, _described(header, 8 + length, size))
    except (struct.error, ValueError) as error:
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
    header.pop("__metadata__", None)
    found, place = {}, begin
    offsets = {name: _offsets(name, entry) for name, entry in header.items()}
    for name in sorted(offsets, key=offsets.__getitem__):
        start, end = offsets[name]
        dtype, shape = _form(name, header[name])
        if begin + start != place or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the size of {name[:SHOWN]!r} is not that of its shape and place")
        found[name], place = _Place(place, dtype, shape), begin + end
    if place != size:
        raise ValueError(f"its arrays end at byte {place:,}, and the file at {size:,}")
    if not found:
        raise ValueError("it holds no arrays")
    return found


def _form(name: str, entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of an array."""
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        told = repr(dtype)[:SHOWN]
        raise ValueError(f"{name[:SHOWN]!r} has the type {told}, which is not supported")
    if not sizes.plausible(shape):
        raise ValueError(f"{name[:SHOWN]!r} has no valid shape")
    return DTYPES[dtype], tuple(shape)


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    """Where an array begins and ends behind the header."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not sizes.plausible(offsets) or len(offsets) != 2:
        raise ValueError(f"{name[:SHOWN]!r} has no place in the file")
    return offsets[0], offsets[1]
