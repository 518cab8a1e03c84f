"""The data sets that the package includes: `emoji` and `glyphs`.

A folder of `cdsde/assets` each: README.md (the data card), metadata.csv (one row an image) and a
zip of lossless WebP files at SPLIT/STYLE/CODE.webp; the emoji's captions.csv has colours and
keywords. In every style of a split that has true pairs the codes are the same, and pairs are told
by the code.
"""

import csv
import functools
import importlib.resources
import os
import random
import zipfile

from cdsde.data import images
from cdsde.data.sources import SPLITS, Item, choices

CAPTIONS = 8  # of an emoji
ARCHIVES = {"emoji": "emoji64.zip", "glyphs": "glyphs64.zip"}


def _asset(name: str, file: str):
    return importlib.resources.files("cdsde") / "assets" / name / file


@functools.cache
def _rows(name: str) -> tuple[dict[str, str], ...]:
    with _asset(name, "metadata.csv").open("r", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def _words(name: str) -> dict[tuple[str, str], str]:
    column = {"emoji": "name", "glyphs": "character"}[name]
    return {(row["style"], row["code"]): row[column].lower() for row in _rows(name)}


@functools.cache
def _described() -> dict[tuple[str, str], tuple[str, list[str]]]:
    """Of an emoji in a style, the name of its colour ("" for many) and its keywords."""
    with _asset("emoji", "captions.csv").open("r", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    styles = [key for key in rows[0] if key not in ("code", "keywords")]
    return {
        (style, row["code"]): (row[style], row["keywords"].split("|"))
        for row in rows
        for style in styles
    }


def metadata(name: str) -> list[dict[str, str]]:
    """The rows of a data set's metadata.csv, one per image; its data card explains them."""
    return [dict(row) for row in _rows(name)]


class EmbeddedSource:
    """One style of an embedded data set; the id is the code, such as "1f600".

    Codes are sorted, so images at the same index in two styles are true pairs where both styles
    have the same codes.

    Args:
      name: "emoji" or "glyphs".
      style: such as "twemoji" or "mincho".
      split: "train", "val" or "test".

    Raises:
      ValueError: the style or the split does not exist.
    """

    def __init__(self, name: str, style: str, split: str):
        rows = _rows(name)
        styles = {row["style"] for row in rows}
        if style not in styles:
            raise ValueError(
                f"The {name} data have no domain '{style}': use one of {choices(style, styles)}."
            )
        if split not in SPLITS:
            raise ValueError(
                f"The {name} data have no split '{split}': use one of {', '.join(SPLITS)}."
            )
        self.name, self.style, self.split = name, style, split
        self.ids = sorted(
            row["code"] for row in rows if row["style"] == style and row["split"] == split
        )
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        code = self.ids[index]
        path = f"{self.split}/{self.style}/{code}.webp"
        where = f"{ARCHIVES[self.name]}:{path}"
        return {"image": images.decode(self._open().read(path), where), "id": code}

    def caption(self, index: int) -> str:
        """The caption: style and name, such as "fluent grinning face"."""
        return f"{self.style} {_words(self.name)[self.style, self.ids[index]]}"

    def captions(self, index: int) -> list[str]:
        """All captions, the first one that of `caption`; with the colour, and of some keywords.

        Such as "fluent yellow grinning face" and "fluent face happy grin".
        """
        code, first = self.ids[index], self.caption(index)
        if self.name != "emoji":
            return [first]
        colour, keywords = _described()[self.style, code]

        def of(words: list[str]) -> str:
            return " ".join([self.style, *([] if colour in ("", *words) else [colour]), *words])

        found = [first, of(first.split()[1:])]
        for n in range(CAPTIONS - len(found)):
            r = random.Random(f"{self.style} {code} {n}")
            words = r.sample(keywords, min(len(keywords), r.randint(2, 4)))
            found.append(of(words) if n % 2 else " ".join([self.style, *words]))
        return found

    def __repr__(self) -> str:
        return (
            f"EmbeddedSource({self.name!r}, {self.style!r}, {self.split!r}) of {len(self)} images"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_zip": None}

    def _open(self) -> zipfile.ZipFile:
        # A forked process must not share its parent's file position.
        if self._zip is None or self._zip[0] != os.getpid():
            archive = _asset(self.name, ARCHIVES[self.name])
            self._zip = (os.getpid(), zipfile.ZipFile(archive.open("rb")))
        return self._zip[1]
