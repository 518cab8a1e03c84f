"""Reads the tensors of a PyTorch file as NumPy arrays, without PyTorch.

A `.pt` is a pickle whose tensors refer to raw storages, in one stream (before PyTorch 1.6) or in a
zip archive. The unpickler accepts only the names in `_GLOBALS`, each of which builds plain data, so
a file cannot call anything else. It supports dense tensors in dicts and lists, the contents of
state dicts; `torch.load` supports more.
"""

from __future__ import annotations

import functools
import io
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

from cdsde.weights.torch import stored

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


def load(path: str | Path, lazy: bool = False) -> Any:
    """The contents of a `torch.save` file, with tensors as NumPy arrays.

    Args:
      path: a file of a little-endian machine; tensors may come from any device.
      lazy: leave the tensors of a zip archive in the file, as `stored.Stored`.

    Returns:
      The saved dict or list; arrays have the dtype and shape of their tensors and own their memory.

    Raises:
      ValueError: the file contains more than tensors and plain data, or is damaged.
    """
    try:
        with open(path, "rb") as f:
            zipped = zipfile.is_zipfile(f)
            f.seek(0)
            return _load_zip(path, f, lazy) if zipped else _load_legacy(f)
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


# A pickle can set attributes of the objects it receives, so these are tuples, checked at creation.
class _Storage(NamedTuple):
    """A named array of numbers, whose bytes follow later in the file; `start` counts elements."""

    key: str
    dtype: np.dtype
    start: int
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, before the storages are read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StorageType:
    """The class of a storage, such as "FloatStorage"; a key of `DTYPES`."""

    def __init__(self, name: str):
        self.name = name


def _check_counts(numbers, what: str) -> None:
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{what} has invalid sizes")


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
    """Unpickler for tensors and plain data; `dtypes` are those of the storages so far."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module, name):
        if (module, name) not in _GLOBALS:
            raise _RefusedError(f"{module}.{name}")
        return _GLOBALS[module, name]()  # a new object, so that a file cannot affect the next one

    def persistent_load(self, pid):
        tag, kind, key, _, size, *view = pid
        if tag != "storage":
            raise ValueError("an object outside the pickle is not a storage")
        _, start, size = view[0] if view and view[0] else (None, 0, size)
        _check_counts((start, size), "a storage")
        dtype = self.dtypes.setdefault(str(key), DTYPES[kind.name])
        if dtype != DTYPES[kind.name]:
            raise ValueError(f"storage {key} has two dtypes")
        return _Storage(str(key), dtype, start, size)


def _load_zip(path: str | Path, f: BinaryIO, lazy: bool) -> Any:
    entries = stored.archive(f)
    names = {name.partition("/")[2]: entry for name, entry in entries.items()}

    def read(name: str) -> bytes:
        f.seek(names[name].start)
        return f.read(names[name].size)

    if names.get("byteorder") and read("byteorder") != b"little":
        raise ValueError("it comes from a big-endian machine")
    content = _Unpickler(io.BytesIO(read("data.pkl"))).load()
    if not lazy:
        return _resolve(content, lambda key: read(f"data/{key}"))

    def leave(tensor: _Tensor) -> stored.Stored:
        storage = tensor.storage
        entry, width = names[f"data/{storage.key}"], storage.dtype.itemsize
        if (storage.start + storage.size) * width > entry.size:
            raise ValueError(f"storage {storage.key} is truncated")
        start = entry.start + (storage.start + tensor.offset) * width
        return stored.Stored(path, start, storage.dtype, tensor.shape, tensor.strides)

    return _replace(content, leave)


def _load_legacy(f: BinaryIO) -> Any:
    if _Unpickler(f).load() != LEGACY_MAGIC:
        raise ValueError("it has another header")
    if _Unpickler(f).load() != LEGACY_PROTOCOL:
        raise ValueError("its version is unknown")
    if not _Unpickler(f).load()["little_endian"]:
        raise ValueError("it comes from a big-endian machine")
    unpickler = _Unpickler(f)
    content = unpickler.load()
    # The storages follow, each as its number of elements and their bytes.
    blobs = {}
    for key in map(str, _Unpickler(f).load()):
        (count,) = struct.unpack("<q", f.read(8))
        blobs[key] = f.read(count * unpickler.dtypes[key].itemsize)
    return _resolve(content, blobs.__getitem__)


def _resolve(content: Any, read: Callable[[str], bytes]) -> Any:
    """Replaces the tensors in `content` by arrays; `read` returns the bytes of a storage."""
    storages: dict[str, np.ndarray] = {}

    def array(tensor: _Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = np.frombuffer(read(storage.key), storage.dtype)
        part = storages[storage.key][storage.start : storage.start + storage.size]
        if part.size < storage.size:
            raise ValueError(f"storage {storage.key} is truncated")
        strides = [storage.dtype.itemsize * s for s in tensor.strides]
        view = np.lib.stride_tricks.as_strided(part[tensor.offset :], tensor.shape, strides)
        return view.copy()

    return _replace(content, array)


def _replace(content: Any, array: Callable[[_Tensor], Any]) -> Any:
    """`content` with `array(tensor)` for each tensor."""
    if isinstance(content, _Tensor):
        return array(content)
    if isinstance(content, dict):
        return {key: _replace(item, array) for key, item in content.items()}
    if isinstance(content, list | tuple):
        return [_replace(item, array) for item in content]
    return content
