"""Reads the tensors of a PyTorch file as NumPy arrays, without PyTorch.

A `.pt` is a pickle whose tensors refer to raw storages, in one stream (before PyTorch 1.6) or in a
zip archive. The unpickler accepts only the names in `_GLOBALS` and those that a caller adds, each
of which builds plain data, so a file cannot call anything else. It supports dense tensors in dicts
and lists, the contents of state dicts; `torch.load` supports more.

Nothing is allocated because a file says so: sizes are compared with the bytes that are there. Only
the tensors that the caller selects are read, each storage once.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cdsde.weights.torch import opcodes

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


PIECE = 2**20  # bytes that are read at once

# (module, name) -> callable, see `opcodes.load`.
Names = Mapping[tuple[str, str], Any]
# Reads a storage: (key, dtype) -> its elements.
Read = Callable[[str, np.dtype], np.ndarray]


class Unsuitable(ValueError):
    """What a `select` raises: the end of a sentence that begins with the file's name."""


class Refused(ValueError):
    """A file holds something else than tensors and plain data; the message is a sentence."""


def load(
    path: str | Path, more: Names | None = None, select: Callable[[Any], Any] | None = None
) -> Any:
    """The contents of a `torch.save` file, with tensors as NumPy arrays.

    Args:
      path: a file of a little-endian machine; tensors may come from any device.
      more: names that the pickle may use beside those of tensors, see `plain_objects`.
      select: `contents -> the part to read`, where a tensor is still a `Tensor`, with a `shape`.
        None reads all.

    Returns:
      The saved dict or list; arrays have the dtype and shape of their tensors, and share memory
      where their tensors did.

    Raises:
      Refused: the file contains more than tensors and plain data.
      ValueError: it is damaged, or `select` found it `Unsuitable`.
    """
    with open(path, "rb") as f:
        try:
            opened = _zip if zipfile.is_zipfile(f) else _legacy
            with opened(f, more) as (content, read):
                return _resolve(content if select is None else select(content), read)
        except Exception as error:
            raise _told(path, error) from None


def _told(path: str | Path, error: Exception) -> ValueError:
    """What is wrong with a file, in a sentence."""
    if isinstance(error, opcodes.RefusedError):
        return Refused(
            f"{path} was refused because it holds something else than plain tensors ({error}) and "
            "loading it could execute code: save only the state_dict, or convert it to "
            ".safetensors where you trust it."
        )
    if isinstance(error, Unsuitable):
        return ValueError(f"{path} {error}")
    # A damaged file can make its readers raise anything.
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} is not a readable PyTorch file: {first}.")


class _Storage(NamedTuple):
    """A named array of numbers, whose bytes follow later in the file; `start` counts elements."""

    key: str
    dtype: np.dtype
    start: int
    size: int


class Tensor(NamedTuple):
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


def _rebuild_tensor(storage, offset, shape, strides, *_) -> Tensor | np.ndarray:
    shape, strides = tuple(shape), tuple(strides)
    _check_counts((offset, *shape, *strides), "a tensor")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    if isinstance(storage, np.ndarray):
        return _view(storage, offset, shape, strides)
    return Tensor(storage, offset, shape, strides)


def _view(storage: np.ndarray, offset, shape, strides) -> np.ndarray:
    strides = [storage.itemsize * n for n in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _rebuild_parameter(data, *_) -> Any:
    return data


_GLOBALS = {
    ("collections", "OrderedDict"): opcodes.dict_of,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(name) for name in DTYPES},
}


class Unpickler:
    """Unpickler for tensors and plain data, and for what the names in `more` build.

    `more` is `{(module, name): callable}`, see `opcodes.load`; `dtypes` are those of the storages
    so far.
    """

    def __init__(self, file: IO[bytes], more: Names | None = None):
        self._file = file
        self._globals = {**_GLOBALS, **(more or {})}
        self.dtypes: dict[str, np.dtype] = {}

    def load(self) -> Any:
        """The content of the next pickle of the stream; errors are those of `opcodes.load`."""
        return opcodes.load(self._file, self._find, self._storage)

    def _find(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise opcodes.RefusedError(f"{module}.{name}")
        return self._globals[module, name]

    def _storage(self, pid) -> _Storage:
        tag, kind, key, _, size, *view = pid
        if tag != "storage":
            raise ValueError("an object outside the pickle is not a storage")
        _, start, size = view[0] if view and view[0] else (None, 0, size)
        _check_counts((start, size), "a storage")
        dtype = self.dtypes.setdefault(str(key), DTYPES[kind.name])
        if dtype != DTYPES[kind.name]:
            raise ValueError(f"storage {key} has two dtypes")
        return _Storage(str(key), dtype, start, size)


@contextlib.contextmanager
def _zip(f: BinaryIO, more: Names | None) -> Iterator[tuple[Any, Read]]:
    """The contents of an archive, with unread tensors, and the function that reads a storage."""
    length = f.seek(0, io.SEEK_END)
    with zipfile.ZipFile(f) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        # PyTorch compresses nothing; what is compressed could unpack to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its archive is compressed, and PyTorch compresses nothing")
        if sum(entry.file_size for entry in archive.infolist()) > length:
            raise ValueError("the parts of its archive are larger than the file")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("it comes from a big-endian machine")
        if "data.pkl" not in entries:
            raise ValueError("its archive has no data.pkl")

        def read(key: str, dtype: np.dtype) -> np.ndarray:
            entry = entries[f"data/{key}"]
            elements = np.empty(entry.file_size // dtype.itemsize, dtype)
            space, at = elements.view(np.uint8), 0
            with archive.open(entry) as data:
                while piece := data.read(PIECE):
                    kept = piece[: len(space) - at]
                    space[at : at + len(kept)] = np.frombuffer(kept, np.uint8)
                    at += len(kept)
            if at < len(space):
                raise ValueError(f"storage {key} is truncated")
            return elements

        with archive.open(entries["data.pkl"]) as data:
            content = Unpickler(data, more).load()
        yield content, read


def storage_in(data: bytes) -> np.ndarray:
    """The storage in the bytes of a file of the old format, as pickles of whole tensors hold it.

    Returns:
      A view of `data`, one-dimensional.

    Raises:
      Exception: as `opcodes.load`.
    """
    f = io.BytesIO(data)
    _check_header(f)
    storage = Unpickler(f).load()
    if not isinstance(storage, _Storage) or Unpickler(f).load() != [storage.key]:
        raise ValueError("a tensor's bytes hold something else than one storage")
    (count,) = struct.unpack("<q", f.read(8))
    if count != storage.size or storage.start:
        raise ValueError("a tensor's bytes announce two sizes")
    return np.frombuffer(data, storage.dtype, count, f.tell())


def _check_header(f: IO[bytes]) -> None:
    if Unpickler(f).load() != LEGACY_MAGIC:
        raise ValueError("it has another header")
    if Unpickler(f).load() != LEGACY_PROTOCOL:
        raise ValueError("its version is unknown")
    if not Unpickler(f).load()["little_endian"]:
        raise ValueError("it comes from a big-endian machine")


@contextlib.contextmanager
def _legacy(f: BinaryIO, more: Names | None) -> Iterator[tuple[Any, Read]]:
    """The same of a stream of pickles, behind which the storages follow."""
    length = f.seek(0, io.SEEK_END)
    f.seek(0)
    _check_header(f)
    unpickler = Unpickler(f, more)
    content = unpickler.load()
    # Each storage as its number of elements and their bytes.
    places = {}
    for key in map(str, Unpickler(f).load()):
        (count,) = struct.unpack("<q", f.read(8))
        size = count * unpickler.dtypes[key].itemsize
        if not 0 <= size <= length - f.tell():
            raise ValueError(f"storage {key} is truncated")
        places[key] = (f.tell(), count)
        f.seek(size, io.SEEK_CUR)

    def read(key: str, dtype: np.dtype) -> np.ndarray:
        start, count = places[key]
        f.seek(start)
        return np.fromfile(f, dtype, count)

    yield content, read


def _resolve(content: Any, read: Read) -> Any:
    """Replaces the tensors in `content` by arrays."""
    storages: dict[str, np.ndarray] = {}
    resolved: dict[int, Any] = {}  # what a file mentions often is resolved once

    def array(tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = read(storage.key, storage.dtype)
        part = storages[storage.key][storage.start : storage.start + storage.size]
        if part.size < storage.size:
            raise ValueError(f"storage {storage.key} is truncated")
        return _view(part, tensor.offset, tensor.shape, tensor.strides)

    def resolve(value):
        if isinstance(value, Tensor):
            return array(value)
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in resolved:
            if isinstance(value, dict):
                resolved[id(value)] = {key: resolve(item) for key, item in value.items()}
            else:
                resolved[id(value)] = [resolve(item) for item in value]
        return resolved[id(value)]

    return resolve(content)
