"""Writing of files: a file is complete or does not exist, and an error says which file and why."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FULL = (errno.ENOSPC, errno.EDQUOT)
_UNFINISHED: set[Path] = set()  # the temporary files that this process writes now


@contextlib.contextmanager
def replacing(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yields a temporary path to write to, and moves that file to `path` at the end.

    A reader never sees an incomplete file, and a killed program leaves the old one. The temporary
    file has the same extension. Missing folders are created. Temporary files that killed
    programs left in the folder are deleted.

    Args:
      path: the file.
      size: its number of bytes, where it is known, for the error message.

    Raises:
      OSError: the file cannot be written; one sentence.
    """
    path = Path(path)
    temporary = path.with_name(
        f".{os.getpid()}-{threading.get_ident()}@{platform.node()}.{path.name}"
    )
    _UNFINISHED.add(temporary)
    try:
        with writing(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            yield temporary
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _UNFINISHED.discard(temporary)


@functools.cache  # once in each folder
def _sweep(folder: Path) -> None:
    """Deletes the temporary files that killed programs of this machine left in a folder."""
    left = re.compile(rf"\.(\d+)-\d+@{re.escape(platform.node())}\..+")
    for name in os.listdir(folder):
        match = left.fullmatch(name)
        if match and not _is_running(int(match[1])):
            (folder / name).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)  # signal 0 only asks
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


@contextlib.contextmanager
def alone(folder: str | os.PathLike, what: str) -> Iterator[None]:
    """A context in which no other program is in such a context of the same folder.

    A program that ends in whatever way leaves it. Where the system or the disk knows no such locks,
    nothing is checked.

    Args:
      folder: is created if it does not exist.
      what: what the programs do there, such as "trains score", for the message.

    Raises:
      ValueError: another program is there.
    """
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another program {what} in {folder}; wait until it has ended, or choose another "
                "--workdir"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def writing(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
    """A context in which an OSError of the system becomes a sentence about `path`.

    Args:
      path: the file or folder that is written in this context.
      size: its number of bytes, where it is known.

    Raises:
      OSError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # is a sentence already
            raise
        if error.errno in FULL:
            raise disk_full(path, size) from error
        reason = (error.strerror or str(error)).lower()
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "there is a file where a folder is needed"
        told = OSError(f"'{path}' cannot be written: {reason}; choose another folder")
        raise told from error


def disk_full(path: str | os.PathLike, size: int | None = None) -> OSError:
    """The error for a disk without space for `path`, of `size` bytes; it names what is free."""
    needed = "" if size is None else f"{size:,} bytes are needed, "
    return OSError(
        f"'{path}' cannot be written, because the disk is full: {needed}{free_space(path):,} bytes "
        "are free; make room, and the same command goes on"
    )


def free_space(path: str | os.PathLike) -> int:
    """Number of free bytes where `path` is or will be."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def read_text(path: str | os.PathLike, advice: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; `advice` is for the error.

    Raises:
      ValueError: it is no UTF-8; one sentence with the file.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); {advice}") from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically.

    Raises:
      OSError: the file cannot be written; one sentence.
    """
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes a JSON file atomically, indented and with sorted keys."""
    write_bytes(path, f"{json.dumps(value, indent=2, sort_keys=True)}\n".encode())


def discard_unfinished() -> None:
    """Deletes the temporary files of this process, for an end in the middle of everything."""
    for temporary in list(_UNFINISHED):
        temporary.unlink(missing_ok=True)
