"""Where images come from: the embedded emoji, folders, TFDS; all behind one interface.

A source has `len(s)`, `s[j] -> {"image": uint8 [H, W, 3], "id": str}` (the image as stored, at its
own size) and `s.ids` (all ids in order, without decoding). Ids are names, not positions, wherever
the data has names. Sources pickle: open files stay behind and are opened again in the other
process. `domains.open_domain` is the one place that knows all kinds.
"""

import csv
import difflib
import functools
import importlib.resources
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from cdsde.data import images

SPLITS = ("train", "val", "test")


class Item(TypedDict):
    """One image: uint8 [H, W, 3] as stored, and its id."""

    image: np.ndarray
    id: str


class Source(Protocol):
    """What every kind of data offers."""

    @property
    def ids(self) -> list[str]:
        """All ids in order, without decoding an image."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Item:
        """The image at `index`, with its id."""


def captions(source: Source, indices: Iterable[int] | None = None) -> list[str]:
    """What images show, in words: all of them, or those at `indices`.

    Raises:
      ValueError: a source without captions, or an image without one.
    """
    if not hasattr(source, "caption"):
        raise ValueError(f"{source!r} has no captions: use the emoji, or a folder of images.")
    return [source.caption(j) for j in (range(len(source)) if indices is None else indices)]


def image_id(name: str) -> int:
    """A stable number, 0 to 2^32 - 1, of an image's id; each image's noise key is derived from it.

    CRC-32 of the UTF-8 bytes: the same in every run, process and position in the data.
    """
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


def choices(wanted: str, existing: Iterable[str]) -> str:
    """The existing names, nearest to `wanted` first, for an error message."""
    ordered = sorted(existing)
    near = difflib.get_close_matches(wanted, ordered, n=3, cutoff=0.4)
    return ", ".join(near + [name for name in ordered if name not in near]) or "none"


# --- embedded emoji ---


def _asset(name: str):
    return importlib.resources.files("cdsde") / "assets" / "emoji" / name


@functools.cache
def _emoji_rows() -> tuple[dict[str, str], ...]:
    with _asset("metadata.csv").open("r", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def _emoji_names() -> dict[tuple[str, str], str]:
    return {(row["style"], row["code"]): row["name"].lower() for row in _emoji_rows()}


def emoji_metadata() -> list[dict[str, str]]:
    """The rows of the emoji's metadata.csv, one an image; its README.md explains the columns."""
    return [dict(row) for row in _emoji_rows()]


class EmojiSource:
    """One style of the embedded emoji; the id is the code, such as "1f600".

    Codes are sorted, so that two styles of one split are true pairs index by index.

    Args:
      style: "twemoji", "noto" or "fluent".
      split: "train", "val" or "test".

    Raises:
      ValueError: a name is not known.
    """

    def __init__(self, style: str, split: str):
        rows = _emoji_rows()
        styles = {row["style"] for row in rows}
        if style not in styles:
            raise ValueError(
                f"The emoji data have no domain '{style}': use one of {choices(style, styles)}."
            )
        if split not in SPLITS:
            raise ValueError(
                f"The emoji data have no split '{split}': use one of {', '.join(SPLITS)}."
            )
        self.style, self.split = style, split
        self.ids = sorted(
            row["code"] for row in rows if row["style"] == style and row["split"] == split
        )
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        code = self.ids[index]
        path = f"{self.split}/{self.style}/{code}.webp"
        return {"image": images.decode(self._open().read(path), f"emoji64.zip:{path}"), "id": code}

    def caption(self, index: int) -> str:
        """Style and name, such as "fluent grinning face"."""
        names = _emoji_names()
        return f"{self.style} {names[self.style, self.ids[index]]}"

    def __repr__(self) -> str:
        return f"EmojiSource({self.style!r}, {self.split!r}) of {len(self)} images"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_zip": None}

    def _open(self) -> zipfile.ZipFile:
        # A forked process must not share the file position of its parent.
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(_asset("emoji64.zip").open("rb")))
        return self._zip[1]


# --- folders ---


class FilesSource:
    """One image file, or all images right in a folder; the id is the file's name.

    Raises:
      ValueError: the path is missing, or the folder holds no image.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise ValueError(f"'{path}' does not exist: give an image file or a folder of images.")
        files = [self.path] if self.path.is_file() else images.list_images(self.path)
        self._folder = files[0].parent
        self.ids = [file.name for file in files]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        name = self.ids[index]
        return {"image": images.decode(self._folder / name), "id": name}

    def caption(self, index: int) -> str:
        """The text file beside the image, NAME.txt for NAME.png.

        Raises:
          ValueError: there is none, or nothing in it.
        """
        path = (self._folder / self.ids[index]).with_suffix(".txt")
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if not text:
            raise ValueError(f"{path} is missing or empty: it says what the image shows.")
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}) of {len(self)} images"


class FolderSource(FilesSource):
    """One domain of a tree ROOT/SPLIT/DOMAIN/* of images; the id is the file's name.

    Raises:
      ValueError: the root, the split or the domain is missing, or the folder holds no image.
    """

    def __init__(self, root: str | os.PathLike, domain: str, split: str):
        base = Path(root).expanduser()
        if not base.is_dir():
            what = "is a file" if base.exists() else "does not exist"
            raise ValueError(
                f"Data root '{root}' {what}: give 'emoji', 'tfds:NAME', or a folder that holds "
                f"{split}/{domain}/*.png (or other images)."
            )
        if not (base / split).is_dir():
            raise ValueError(
                f"Data root '{root}' has no split '{split}' (there are: "
                f"{choices(split, _folders(base))}): make a folder '{base / split}'."
            )
        if not (base / split / domain).is_dir():
            raise ValueError(
                f"Split '{base / split}' has no domain '{domain}': use one of "
                f"{choices(domain, _folders(base / split))}, or make the folder."
            )
        super().__init__(base / split / domain)


def _folders(path: Path) -> Sequence[str]:
    return [p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
