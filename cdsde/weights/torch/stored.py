"""Arrays that stay in their file until they are needed, and the checked contents of such files.

A network of hundreds of megabytes is converted array by array, so that memory holds it once. Sizes
that a file claims are compared with the file before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

HEADER = 32 * 2**20  # largest header of a safetensors file, in bytes; a thousand arrays have 0.1 MB
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


class Stored:
    """An array in a file; `np.asarray` reads it.

    Attributes:
      shape, dtype: of the array.
    """

    def __init__(
        self,
        path: str | Path,
        start: int,
        dtype: np.dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
    ):
        """`start` is the place of its first byte; `strides` count elements, default: C order."""
        self.shape, self.dtype = shape, dtype
        self._path, self._start, self._strides = path, start, strides

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        count = math.prod(self.shape)
        if count and self._strides is not None:
            reach = zip(self.shape, self._strides, strict=True)
            count = 1 + sum((n - 1) * s for n, s in reach)
        value = np.fromfile(self._path, self.dtype, count, offset=self._start)
        if value.size != count:
            raise ValueError(f"{self._path} became shorter while it was read")
        if self._strides is None or not value.size:
            value = value.reshape(self.shape)
        else:
            strides = [self.dtype.itemsize * s for s in self._strides]
            value = np.lib.stride_tricks.as_strided(value, self.shape, strides)
        return value if dtype is None else value.astype(dtype, copy=False)


def safetensors(path: str | Path) -> dict[str, Stored]:
    """The arrays of a safetensors file by name.

    Raises:
      ValueError: the file is damaged, or its header does not describe it.
    """
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size - 8, HEADER):
                raise ValueError(f"its header claims {length:,} bytes of {size:,}")
            header = json.loads(f.read(length))
            return _described(path, header, 8 + length, size)
    except (struct.error, ValueError, RecursionError) as error:
        reason = "it is too short" if isinstance(error, struct.error) else str(error)
        raise ValueError(
            f"{path} is not a readable safetensors file: {reason}; get the file again"
        ) from None


def _described(path: str | Path, header: Any, begin: int, size: int) -> dict[str, Stored]:
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
        found[name], place = Stored(path, place, dtype, tuple(shape)), begin + end
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


class Entry(NamedTuple):
    """Place of a file inside a zip archive: its first byte, and its number of bytes."""

    start: int
    size: int


def archive(f: BinaryIO) -> dict[str, Entry]:
    """The files in a zip archive that is not compressed, as those of PyTorch are.

    Raises:
      ValueError: the archive is compressed or encrypted, or claims more than there is.
      zipfile.BadZipFile: it is damaged.
    """
    size, found, total = os.fstat(f.fileno()).st_size, {}, 0
    with zipfile.ZipFile(f) as opened:
        for info in opened.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError("its archive is compressed, and PyTorch writes none such")
            f.seek(info.header_offset)
            local = f.read(30)
            if len(local) < 30 or local[:4] != b"PK\3\4" or local[6] & 1:
                raise ValueError(f"{info.filename} is encrypted or not where the archive says")
            start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
            total += info.file_size
            if start + info.file_size > size or total > size:
                raise ValueError(f"{info.filename} claims more bytes than the file has")
            found[info.filename] = Entry(start, info.file_size)
    return found
