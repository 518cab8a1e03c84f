"""Sources of images with one interface: folders; embedded data (embedded.py); TFDS (tfds.py).

A source has `len(s)`, `s[j] -> {"image": uint8 [H, W, 3], "id": str}` (the image at its stored
size) and `s.ids` (all ids in order, without decoding). Ids are names where the data have names, and
positions otherwise. Sources can be pickled; another process opens its own files.
`domains.open_domain` opens a source of any kind.
"""

import difflib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from cdsde.data import folders, images
from cdsde.runtime.files import read_text

SPLITS = ("train", "val", "test")


class Item(TypedDict):
    """One image as stored, uint8 `[H, W, 3]`, and its id."""

    image: np.ndarray
    id: str


class Source(Protocol):
    """The interface of every source."""

    @property
    def ids(self) -> list[str]:
        """All ids in order; no image is decoded."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Item:
        """The image at `index`, with its id."""


def captions(
    source: Source,
    indices: Iterable[int] | None = None,
    wanted: Callable[[str], bool] = lambda caption: True,
) -> list[str]:
    """The captions of all images, or of those at `indices`.

    Where an image has several, it is the first one that is `wanted`, or else the first one.

    Raises:
      ValueError: the source or one of the images has no caption.
    """
    several = all_captions(source, indices)
    return [next(filter(wanted, texts), texts[0]) for texts in several]


def all_captions(source: Source, indices: Iterable[int] | None = None) -> list[list[str]]:
    """All captions of each image; training draws one of them.

    Raises:
      ValueError: the source or one of the images has no caption.
    """
    if not hasattr(source, "captions"):
        raise ValueError(f"{source!r} has no captions: use embedded data, or a folder of images.")
    return [source.captions(j) for j in (range(len(source)) if indices is None else indices)]


def content(source: Source, index: int) -> str:
    """What identifies an image by its content, whatever its name: a hash, 32 hexadecimal digits.

    Of a file it is the hash of its bytes, of other data that of the pixels.
    """
    if hasattr(source, "content"):
        return source.content(index)
    image = source[index]["image"]
    return _hash(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def image_id(name: str) -> int:
    """Hashes an image's id to a number, 0 to 2^32 - 1, from which the image's noise key derives.

    CRC-32 of the UTF-8 bytes, so it is the same in every run, process and position in the data.
    """
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


def choices(name: str, existing: Iterable[str]) -> str:
    """The existing names, nearest to `name` first, for an error message."""
    ordered = sorted(existing)
    nearest = difflib.get_close_matches(name, ordered, n=3, cutoff=0.4)
    return ", ".join(nearest + [other for other in ordered if other not in nearest]) or "none"


class FilesSource:
    """One image file, or all images of a folder without subfolders; the id is the file's name.

    Raises:
      ValueError: the path is missing, or the folder contains no image.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise ValueError(f"'{path}' does not exist: give an image file or a folder of images.")
        files = [self.path] if self.path.is_file() else folders.list_images(self.path)
        self._folder = files[0].parent
        self.ids = [file.name for file in files]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        return {"image": images.decode(self.file(index)), "id": self.ids[index]}

    def file(self, index: int) -> Path:
        """The image's file."""
        return self._folder / self.ids[index]

    def content(self, index: int) -> str:
        """The hash of the file's bytes."""
        return _hash(self.file(index).read_bytes())

    def captions(self, index: int) -> list[str]:
        """The captions: the lines of the text file beside the image, NAME.txt for NAME.png.

        Raises:
          ValueError: the text file is missing or empty, or no text in UTF-8.
        """
        path = self.file(index).with_suffix(".txt")
        text = read_text(path, "save it as UTF-8") if path.is_file() else ""
        if not (lines := [line.strip() for line in text.splitlines() if line.strip()]):
            raise ValueError(f"{path} is missing or empty: it says what the image shows.")
        return lines

    def caption(self, index: int) -> str:
        """The first of the captions."""
        return self.captions(index)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}) of {len(self)} images"


class FolderSource(FilesSource):
    """The images of a folder ROOT/SPLIT/DOMAIN; the id is the file's name.

    Raises:
      ValueError: the root, the split or the domain is missing, or the folder contains no image.
    """

    def __init__(self, root: str | os.PathLike, domain: str, split: str):
        base = Path(root).expanduser()
        if not base.is_dir():
            problem = "is a file" if base.exists() else "does not exist"
            raise ValueError(
                f"Data root '{root}' {problem}: give 'emoji', 'glyphs', 'tfds:NAME', or a folder "
                f"that holds {split}/{domain}/*.png (or other images)."
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
