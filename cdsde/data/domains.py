"""Opens domains by name; the only module that uses every kind of source."""

import bisect
import itertools
import operator
import os
from collections.abc import Mapping

from cdsde.data.sources import EmojiSource, FolderSource, Item, Source


class JoinedSource:
    """Several domains in sequence; ids have the form DOMAIN_ID, so that they are unique."""

    def __init__(self, sources: Mapping[str, Source]):
        self._sources = list(sources.values())
        self._ends = list(itertools.accumulate(map(len, self._sources)))
        self.ids = [f"{name}_{i}" for name, source in sources.items() for i in source.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        index = range(len(self))[operator.index(index)]
        part = bisect.bisect_right(self._ends, index)
        source = self._sources[part]
        return {**source[index - self._ends[part] + len(source)], "id": self.ids[index]}

    def __repr__(self) -> str:
        return f"JoinedSource({', '.join(map(repr, self._sources))})"


def open_domain(
    root: str | os.PathLike,
    domain: str,
    split: str,
    data_dir: str | None = None,
) -> Source:
    """Opens the images of one domain and split.

    Args:
      root: "emoji" (included in the package), "tfds:NAME" such as "tfds:cycle_gan/horse2zebra", or
        a folder that contains SPLIT/DOMAIN/*; "./emoji" is a folder named emoji.
      domain: an emoji style, a folder, or a TFDS split suffix or class.
      split: "train", "val" or "test".
      data_dir: folder of TFDS data sets; None is TFDS's default.

    Raises:
      ValueError: root, domain or split does not exist; the message lists the existing ones.
    """
    root = os.fspath(root)
    if root == "emoji":
        return EmojiSource(domain, split)
    if root.startswith("tfds:"):
        from cdsde.data.tfds import TfdsSource

        return TfdsSource(root.removeprefix("tfds:"), domain, split, data_dir)
    return FolderSource(root, domain, split)


def open_pairs(root: str | os.PathLike, source: str, target: str, split: str) -> Source | None:
    """Opens the true pairs: image j of the result depicts the same emoji as image j of `source`.

    Arguments and errors are those of `open_domain`.

    Returns:
      A source in the style `target`; None for folders and TFDS, which have no true pairs.
    """
    if os.fspath(root) != "emoji":
        return None
    pairs = EmojiSource(target, split)
    if pairs.ids != EmojiSource(source, split).ids:
        raise ValueError(
            f"Emoji styles '{source}' and '{target}' have different codes in '{split}': the "
            "package data is damaged, install it again."
        )
    return pairs
