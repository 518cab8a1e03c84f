"""Opens domains by name; the only module that uses every kind of source."""

import bisect
import itertools
import operator
import os
from collections.abc import Mapping, Sequence

from cdsde.data import pie_bench
from cdsde.data.embedded import ARCHIVES, EmbeddedSource
from cdsde.data.sources import FolderSource, Item, Source, content


class JoinedSource:
    """Several domains in sequence; ids have the form DOMAIN_ID, so that they are unique."""

    def __init__(self, sources: Mapping[str, Source]):
        self._sources = list(sources.values())
        self._ends = list(itertools.accumulate(map(len, self._sources)))
        self.ids = [f"{name}_{i}" for name, source in sources.items() for i in source.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        source, inner = self._place(index)
        return {**source[inner], "id": self.ids[index]}

    def content(self, index: int) -> str:
        """The hash of the image's content."""
        return content(*self._place(index))

    def _place(self, index: int) -> tuple[Source, int]:
        """The source of an image, and its position there."""
        index = range(len(self))[operator.index(index)]
        part = bisect.bisect_right(self._ends, index)
        source = self._sources[part]
        return source, index - self._ends[part] + len(source)

    def __repr__(self) -> str:
        return f"JoinedSource({', '.join(map(repr, self._sources))})"


class OrderedSource:
    """Some images of a source, in an order of its own."""

    def __init__(self, source: Source, order: Sequence[int]):
        self._source, self._order = source, list(order)
        self.ids = [source.ids[j] for j in self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Item:
        return self._source[self._order[index]]

    def __repr__(self) -> str:
        return f"OrderedSource({len(self)} of {self._source!r})"


def open_domain(
    root: str | os.PathLike,
    domain: str,
    split: str,
    data_dir: str | None = None,
) -> Source:
    """Opens the images of one domain and split.

    Args:
      root: "emoji" or "glyphs" (included in the package), "tfds:NAME" such as
        "tfds:cycle_gan/horse2zebra", or a folder that contains SPLIT/DOMAIN/* or PIE-Bench;
        "./emoji" is a folder named emoji.
      domain: a style of the embedded data, a folder, a TFDS split suffix or class, or an editing
        type of PIE-Bench.
      split: "train", "val" or "test".
      data_dir: folder of TFDS data sets; None is TFDS's default.

    Raises:
      ValueError: root, domain or split does not exist; the message lists the existing ones.
    """
    root = os.fspath(root)
    if root in ARCHIVES:
        return EmbeddedSource(root, domain, split)
    if root.startswith("tfds:"):
        from cdsde.data.tfds import TfdsSource

        return TfdsSource(root.removeprefix("tfds:"), domain, split, data_dir)
    if pie_bench.is_root(root):
        return pie_bench.PieBenchSource(root, domain, split)
    return FolderSource(root, domain, split)


def open_pairs(
    root: str | os.PathLike, source: str, target: str, split: str, by_name: bool = False
) -> Source | None:
    """Opens the true pairs: image j of the result is the true result of image j of `source`.

    Args:
      root, source, target, split: as for `open_domain`.
      by_name: whether images of a folder are pairs if their files' names are the same but for the
        ending. Embedded data have pairs by themselves.

    Returns:
      A source of the domain `target`; None without pairs.

    Raises:
      ValueError: a domain or split does not exist, or an image has no pair.
    """
    root = os.fspath(root)
    if root not in ARCHIVES and not by_name:
        return None
    if root.startswith("tfds:"):
        raise ValueError(f"data.pairs=name needs files with names; {root} has none")
    ours, theirs = open_domain(root, source, split), open_domain(root, target, split)
    positions = {os.path.splitext(name)[0]: j for j, name in enumerate(theirs.ids)}
    stems = [os.path.splitext(name)[0] for name in ours.ids]
    missing = [stem for stem in stems if stem not in positions]
    if missing and root in ARCHIVES:  # training sets of glyphs share no character
        return None
    if missing:
        raise ValueError(
            f"data.pairs=name: {len(missing)} of {len(stems)} images of {split}/{source} have no "
            f"image of the same name in {split}/{target}, the first is '{missing[0]}'"
        )
    return OrderedSource(theirs, [positions[stem] for stem in stems])
