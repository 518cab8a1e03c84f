"""Tensors of a PyTorch file as NumPy arrays, without PyTorch.

A `.pt` is a pickle whose tensors point into raw storages, in one stream (before PyTorch 1.6) or in
a zip archive. The pickle is read by an interpreter that knows the names in `_GLOBALS` and no
others, each of which builds plain data: nothing in a file can call anything else. It reads what
state dicts are made of, dense tensors in dicts and lists; `torch.load` reads more.
"""

from __future__ import annotations

import functools
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def load(path: str | Path) -> Any:
    """What `torch.save` wrote, with tensors as NumPy arrays.

    Args:
      path: the file, of a little-endian machine; where a tensor was (CPU, GPU) does not matter.

    Returns:
      The saved dict or list; arrays have the dtype and shape of their tensors and own their memory.

    Raises:
      ValueError: the file names something else than tensors and plain data, or is damaged.
    """
    try:
        with open(path, "rb") as f:
            zipped = zipfile.is_zipfile(f)
            f.seek(0)
            return _load_zip(f) if zipped else _load_legacy(f)
    except _RefusedError as error:
        raise ValueError(
            f"{path} was refused because it holds something else than plain tensors ({error}) and "
            "loading it could execute code: save only the state_dict, or convert it to "
            ".safetensors where you trust it."
        ) from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can make its reader raise anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable PyTorch file: {first}.") from None


class _RefusedError(Exception):
    pass


# Of what a pickle is given it can set attributes, so these are tuples, checked when they are made.
class _Storage(NamedTuple):
    """A named run of numbers, whose bytes come later in the file; `start` counts elements."""

    key: str
    dtype: np.dtype
    start: int
    size: int


class _Tensor(NamedTuple):
    """A tensor before the storages are read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StorageType:
    """The class of a storage, by the name of its dtype."""

    def __init__(self, name: str):
        self.name = name


def _check_counts(numbers, what: str) -> None:
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{what} is ill-described")


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    shape, strides = tuple(shape), tuple(strides)
    _check_counts((offset, *shape, *strides), "a tensor")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data, *_) -> Any:
    return data


_GLOBALS = {
    ("collections", "OrderedDict"): lambda: OrderedDict,
    ("torch._utils", "_rebuild_tensor"): lambda: lambda *args: _rebuild_tensor(*args),
    ("torch._utils", "_rebuild_tensor_v2"): lambda: lambda *args: _rebuild_tensor(*args),
    ("torch._utils", "_rebuild_parameter"): lambda: lambda *args: _rebuild_parameter(*args),
    **{("torch", name): functools.partial(_StorageType, name) for name in DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Reads pickles that name nothing but tensors; `dtypes` are those of the storages seen."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module, name):
        if (module, name) not in _GLOBALS:
            raise _RefusedError(f"{module}.{name}")
        return _GLOBALS[module, name]()  # made anew, so that no file changes it for the next one

    def persistent_load(self, pid):
        tag, kind, key, _, size, *view = pid
        if tag != "storage":
            raise ValueError("an object outside the pickle is not a storage")
        _, start, size = view[0] if view and view[0] else (None, 0, size)
        _check_counts((start, size), "a storage")
        dtype = self.dtypes.setdefault(str(key), DTYPES[kind.name])
        if dtype != DTYPES[kind.name]:
            raise ValueError(f"storage {key} is of two dtypes")
        return _Storage(str(key), dtype, start, size)


def _load_zip(f: BinaryIO) -> Any:
    with zipfile.ZipFile(f) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if names.get("byteorder") and archive.read(names["byteorder"]) != b"little":
            raise ValueError("it is of a big-endian machine")
        with archive.open(names["data.pkl"]) as data:
            content = _Unpickler(data).load()

        return _resolve(content, lambda key: archive.read(names[f"data/{key}"]))


def _load_legacy(f: BinaryIO) -> Any:
    if _Unpickler(f).load() != LEGACY_MAGIC:
        raise ValueError("it does not begin as one")
    if _Unpickler(f).load() != LEGACY_PROTOCOL:
        raise ValueError("it is of an unknown version")
    if not _Unpickler(f).load()["little_endian"]:
        raise ValueError("it is of a big-endian machine")
    unpickler = _Unpickler(f)
    content = unpickler.load()
    # The storages follow, each as a count of elements and then these.
    blobs = {}
    for key in map(str, _Unpickler(f).load()):
        (count,) = struct.unpack("<q", f.read(8))
        blobs[key] = f.read(count * unpickler.dtypes[key].itemsize)
    return _resolve(content, blobs.__getitem__)


def _resolve(content: Any, read: Callable[[str], bytes]) -> Any:
    """The content with arrays for tensors; `read` gives the bytes of a storage."""
    storages: dict[str, np.ndarray] = {}

    def resolve(value):
        if isinstance(value, _Tensor):
            storage = value.storage
            if storage.key not in storages:
                storages[storage.key] = np.frombuffer(read(storage.key), storage.dtype)
            part = storages[storage.key][storage.start : storage.start + storage.size]
            if part.size < storage.size:
                raise ValueError(f"storage {storage.key} is cut off")
            strides = [storage.dtype.itemsize * s for s in value.strides]
            view = np.lib.stride_tricks.as_strided(part[value.offset :], value.shape, strides)
            return view.copy()
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [resolve(item) for item in value]
        return value

    return resolve(content)
