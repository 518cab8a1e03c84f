"""PIE-Bench (Ju et al. 2024, PnP Inversion): images, each with the words and the place of an edit.

A folder with the images in `annotation_images/` and `mapping_file.json`, `{key: entry}`:

    image_path        the image, below `annotation_images/`
    original_prompt   its caption; words that change are in [brackets]
    editing_prompt    the edited text, likewise
    editing_type_id   "0" to "9", such as 1, change of an object
    blended_word      a word of each text that tells the place of the edit, or empty: "cat dog"
    mask              start and length of runs of the object's pixels, row by row of 512x512

The domain of this source is an editing type, or `all`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from cdsde.data.sources import FilesSource, choices

MAPPING, IMAGES, ALL = "mapping_file.json", "annotation_images", "all"
SIDE = 512  # of every image
FIELDS = ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask")


def is_root(path: str | os.PathLike) -> bool:
    """Whether a folder is PIE-Bench's: it has its mapping file."""
    return (Path(path).expanduser() / MAPPING).is_file()


class PieBenchSource(FilesSource):
    """The images of an editing type, or all; the ids are the mapping file's keys.

    Raises:
      ValueError: the mapping file is broken, or the editing type or the split does not exist.
    """

    def __init__(self, root: str | os.PathLike, domain: str, split: str):
        self.path = Path(root).expanduser()
        entries = _entries(self.path / MAPPING)
        kinds = {str(entry["editing_type_id"]) for entry in entries.values()}
        if domain not in (ALL, *kinds):
            raise ValueError(
                f"PIE-Bench in '{root}' has no editing type '{domain}': set data.source to one of "
                f"{choices(domain, (ALL, *kinds))}."
            )
        if split != "test":
            raise ValueError(
                f"PIE-Bench in '{root}' has no split '{split}': it is a test set, use test."
            )
        self._entries = {
            key: entry
            for key, entry in entries.items()
            if domain in (ALL, str(entry["editing_type_id"]))
        }
        self.ids = list(self._entries)

    def file(self, index: int) -> Path:
        """The image's file."""
        return self.path / IMAGES / self._entry(index)["image_path"]

    def caption(self, index: int) -> str:
        """The caption, without brackets."""
        return _plain(self._entry(index)["original_prompt"])

    def captions(self, index: int) -> list[str]:
        """The caption alone."""
        return [self.caption(index)]

    def edit(self, index: int) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
        """The caption, the edited text, and the words in brackets of each."""
        entry = self._entry(index)
        texts = entry["original_prompt"], entry["editing_prompt"]
        before, after = (tuple(re.findall(r"\[\s*([^\]]*?)\s*\]", text)) for text in texts)
        return self.caption(index), _plain(texts[1]), before, after

    def blended(self, index: int) -> tuple[str, ...]:
        """The words of caption and edited text that tell the place of the edit, or ()."""
        return _words(self._entry(index).get("blended_word"))

    def mask(self, index: int, size: int = SIDE) -> np.ndarray:
        """Where the object is, bool `[size, size]`; the border counts as object, as published.

        At other sizes than 512, a pixel is object where it covers any part of the object.
        """
        flat = np.zeros(SIDE * SIDE, bool)
        runs = np.asarray(self._entry(index)["mask"], np.int64).reshape(-1, 2)
        for start, length in runs:
            flat[start : start + length] = True
        mask = flat.reshape(SIDE, SIDE)
        mask[[0, -1]] = mask[:, [0, -1]] = True
        for _ in "rows", "columns":
            mask = np.stack([mask[a:b].any(0) for a, b in _covered(size)], 1)
        return mask

    def _entry(self, index: int) -> dict[str, Any]:
        return self._entries[self.ids[index]]


def _plain(text: str) -> str:
    return text.replace("[", "").replace("]", "")


def _covered(size: int) -> list[tuple[int, int]]:
    """The first of `SIDE` places that each of `size` covers in part, and the one after the last."""
    return [(n * SIDE // size, -(-(n + 1) * SIDE // size)) for n in range(size)]


def _words(blended: Any) -> tuple[str, ...]:
    """The words of a `blended_word`, a text or a list; the first two count, as published.

    Raises:
      ValueError: there is one, or something that is no word.
    """
    words = blended.split() if isinstance(blended, str) else blended or []
    if isinstance(words, list) and len(words) != 1:
        if all(isinstance(word, str) and word.strip() for word in words):
            return tuple(words[:2])
    raise ValueError(f"{blended!r} is neither empty nor a word of each text")


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a mapping file, checked."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy it again.") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} holds no entries by key: copy it again.")
    for key, entry in entries.items():
        missing = [f for f in FIELDS if not isinstance(entry, dict) or f not in entry]
        if missing:
            raise ValueError(f"{path}: the entry '{key}' has no {missing[0]}: copy it again.")
        try:
            _words(entry.get("blended_word"))
        except ValueError as error:
            raise ValueError(
                f"{path}: the blended_word of '{key}', {error}: copy it again."
            ) from None
        if not isinstance(entry["mask"], list) or len(entry["mask"]) % 2:
            raise ValueError(
                f"{path}: the mask of '{key}' is not a list of starts and lengths: copy it again."
            )
    return entries
