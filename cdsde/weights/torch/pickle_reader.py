"""Reads the tensors of a PyTorch file as NumPy arrays, without PyTorch.

A `.pt` is a pickle whose tensors refer to raw storages, in one stream (before PyTorch 1.6) or in a
zip archive. The unpickler accepts only the names in `_GLOBALS` and those that a caller adds, each
of which builds plain data, so a file cannot call anything else. It supports dense tensors in dicts
and lists, the contents of state dicts; `torch.load` supports more.

Nothing is allocated because a file says so: sizes are compared with the bytes that are there, and
what is mentioned many times is paid for each time. Only the tensors that the caller selects are
read, each storage once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cdsde.weights.torch import opcodes, sizes

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
DIRECTORY = 2**21  # largest list of an archive's parts, in bytes; a storage takes about 90 there
LONGEST_KEY = 64  # characters of a storage's name, which is a number
# How often the numbers of a file may be mentioned; tied weights are mentioned twice. A reader turns
# each mention into an array.
MENTIONS = 8
BEGUN = 20  # operations that it takes to begin the five pickles of a storage's bytes
SHOWN = 200  # characters of a reason in a message

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
            length = f.seek(0, io.SEEK_END)
            with opened(f, more) as (content, read):
                return _resolve(content if select is None else select(content), read, length)
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
    return ValueError(
        f"{path} is not a readable PyTorch file: {reason(error)}; get the file again."
    )


def reason(error: Exception) -> str:
    """The reason in an error that a damaged file made its reader raise, which can be any."""
    if isinstance(error, IndexError):
        return "its pickle takes more than there is"
    if isinstance(error, KeyError):
        return f"it has no {error}"[:SHOWN]
    lines = str(error).splitlines()
    return lines[0][:SHOWN].rstrip(".") if lines else type(error).__name__


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


class _Held:
    """A storage whose bytes the pickle itself holds."""

    def __init__(self, elements: np.ndarray):
        self.elements, self.size = elements, elements.size


def _rebuild_tensor(storage, offset, shape, strides, *_) -> Tensor | np.ndarray:
    # Not a tensor in its place: one that repeats a number says nothing about what lies behind it.
    if not isinstance(storage, _Storage | _Held):
        raise ValueError("a tensor has no storage")
    if not (sizes.plausible(shape) and sizes.plausible(strides) and sizes.plausible([offset])):
        raise ValueError("a tensor has invalid sizes")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    if isinstance(storage, _Held):
        return _view(storage.elements, offset, shape, strides)
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _view(storage: np.ndarray, offset, shape, strides) -> np.ndarray:
    strides = [storage.itemsize * n for n in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _rebuild_parameter(data, *_) -> Any:
    return data


_GLOBALS = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(name) for name in DTYPES},
}


class Unpickler:
    """Unpickler for tensors and plain data, and for what the names in `more` build.

    `more` is `{(module, name): callable}`, see `opcodes.load`; `dtypes` are those of the storages
    so far. All pickles of one file share one `work`.
    """

    def __init__(self, file: IO[bytes], work: opcodes.Work, more: Names | None = None):
        self._file, self._work = file, work
        ordered = functools.partial(opcodes.dict_of, work)
        self._globals = {**_GLOBALS, ("collections", "OrderedDict"): ordered, **(more or {})}
        self.dtypes: dict[str, np.dtype] = {}

    def load(self) -> Any:
        """The content of the next pickle of the stream; errors are those of `opcodes.load`."""
        return opcodes.load(self._file, self._find, self._storage, self._work)

    def _find(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise opcodes.RefusedError(f"{module[:SHOWN]}.{name[:SHOWN]}")
        return self._globals[module, name]

    def _storage(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("an object outside the pickle is not a storage")
        _, kind, key, _, size, *view = pid
        if not isinstance(kind, _StorageType) or not _is_key(key):
            raise ValueError("a storage has no type or no name")
        _, start, size = view[0] if view and view[0] else (None, 0, size)
        if not sizes.plausible([start, size]):
            raise ValueError("a storage has invalid sizes")
        dtype = self.dtypes.setdefault(key, DTYPES[kind.name])
        if dtype != DTYPES[kind.name]:
            raise ValueError(f"storage {key} has two dtypes")
        return _Storage(key, dtype, start, size)


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= LONGEST_KEY


class _Directory:
    """A file whose archive cannot have more parts than its reader wants to list."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def seekable(self) -> bool:
        """True: archives are read from their end."""
        return True

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes; -1 means all."""
        data = self._file.read(DIRECTORY + 1 if count < 0 else min(count, DIRECTORY + 1))
        if len(data) > DIRECTORY:
            raise ValueError("its archive lists too many parts")
        return data


@contextlib.contextmanager
def _zip(f: BinaryIO, more: Names | None) -> Iterator[tuple[Any, Read]]:
    """The contents of an archive, with unread tensors, and the function that reads a storage."""
    length = f.seek(0, io.SEEK_END)
    # Beside the list of parts, nothing is read in larger pieces than `PIECE`.
    with zipfile.ZipFile(_Directory(f)) as archive:  # pyright: ignore[reportArgumentType]
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        # PyTorch compresses nothing; what is compressed could unpack to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its archive is compressed, and PyTorch compresses nothing")
        if sum(entry.file_size for entry in archive.infolist()) > length:
            raise ValueError("the parts of its archive are larger than the file")
        if "byteorder" in entries:
            with archive.open(entries["byteorder"]) as order:
                if order.read(PIECE) != b"little":
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
            buffered = io.BufferedReader(data, PIECE)  # pyright: ignore[reportArgumentType]
            content = Unpickler(buffered, opcodes.Work(), more).load()
        yield content, read


class Storages:
    """The storages in a pickle of whole tensors, each the bytes of a file of the old format."""

    def __init__(self, work: opcodes.Work):
        self._work = work
        # By the identity of the bytes, which are kept, so that nobody else gets it.
        self._found: dict[int, tuple[bytes, _Held]] = {}

    def find(self, data: Any) -> _Held:
        """The storage in these bytes; its elements are a view of them.

        Raises:
          Exception: as `opcodes.load`.
        """
        if not isinstance(data, bytes):
            raise ValueError("a tensor's bytes are no bytes")
        if id(data) not in self._found:
            self._found[id(data)] = (data, _Held(self._read(data)))
        return self._found[id(data)][1]

    def _read(self, data: bytes) -> np.ndarray:
        self._work.spend(BEGUN)
        f = io.BytesIO(data)
        _check_header(f, self._work)
        storage = Unpickler(f, self._work).load()
        if not isinstance(storage, _Storage) or Unpickler(f, self._work).load() != [storage.key]:
            raise ValueError("a tensor's bytes hold something else than one storage")
        (count,) = struct.unpack("<q", f.read(8))
        if count != storage.size or storage.start:
            raise ValueError("a tensor's bytes announce two sizes")
        return np.frombuffer(data, storage.dtype, count, f.tell())


def _check_header(f: IO[bytes], work: opcodes.Work) -> None:
    if Unpickler(f, work).load() != LEGACY_MAGIC:
        raise ValueError("it has another header")
    if Unpickler(f, work).load() != LEGACY_PROTOCOL:
        raise ValueError("its version is unknown")
    if not Unpickler(f, work).load()["little_endian"]:
        raise ValueError("it comes from a big-endian machine")


@contextlib.contextmanager
def _legacy(f: BinaryIO, more: Names | None) -> Iterator[tuple[Any, Read]]:
    """The same of a stream of pickles, behind which the storages follow."""
    length = f.seek(0, io.SEEK_END)
    f.seek(0)
    work = opcodes.Work()
    _check_header(f, work)
    unpickler = Unpickler(f, work, more)
    content = unpickler.load()
    # Each storage as its number of elements and their bytes.
    places = {}
    for key in Unpickler(f, work).load():
        if not _is_key(key):
            raise ValueError("a storage has no name")
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


def check_mentions(size: int, length: int) -> None:
    """Checks that arrays of together `size` bytes can be those of a file of `length`.

    Raises:
      ValueError: the same numbers are mentioned so often that copies would fill the memory.
    """
    if size > MENTIONS * length:
        raise ValueError(f"its tensors are together more than {MENTIONS} times as large as it is")


def _resolve(content: Any, read: Read, length: int) -> Any:
    """Replaces the tensors in `content` by arrays; `length` is that of the file."""
    storages: dict[str, np.ndarray] = {}
    resolved: dict[int, Any] = {}  # what a file mentions often is resolved once
    size = 0

    def array(tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = read(storage.key, storage.dtype)
        part = storages[storage.key][storage.start : storage.start + storage.size]
        if part.size < storage.size:
            raise ValueError(f"storage {storage.key} is truncated")
        return _view(part, tensor.offset, tensor.shape, tensor.strides)

    def resolve(value):
        nonlocal size
        if isinstance(value, Tensor):
            size += math.prod(value.shape) * value.storage.dtype.itemsize
            check_mentions(size, length)
        elif not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in resolved:
            if isinstance(value, Tensor):
                resolved[id(value)] = array(value)
            elif isinstance(value, dict):
                resolved[id(value)] = {key: resolve(item) for key, item in value.items()}
            else:
                resolved[id(value)] = [resolve(item) for item in value]
        return resolved[id(value)]

    return resolve(content)
