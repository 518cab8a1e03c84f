"""A source of images from TensorFlow Datasets, read from array_record without TensorFlow.

sources.py describes the interface.
"""

import os
from typing import Any

import tensorflow_datasets as tfds

from cdsde.data import images
from cdsde.data.sources import Item, choices

# Features that can name an image; the first existing one does.
ID_FEATURES = ("id", "image_id", "image/filename", "file_name", "filename")


class TfdsSource:
    """One domain of a TFDS data set.

    A domain is, in this order: the ending of a split's name ("A" of trainA), one half of a config's
    name ("horse" of horse2zebra stands for A), or a class of the feature "label". The id comes from
    one of `ID_FEATURES`; without one it is split and position, such as "trainA-000017", which stays
    the same until the data are prepared again.

    Args:
      name: the name for `tfds.builder`, such as "cycle_gan/horse2zebra".
      domain: the domain, see above.
      split: "train", "val" (or "validation" in the data set) or "test".
      data_dir: folder of TFDS's data; None is TFDS's default (TFDS_DATA_DIR overrides it).

    Raises:
      ValueError: the data set is unknown, cannot be prepared, has no image, or lacks the domain.
    """

    def __init__(
        self, name: str, domain: str, split: str, data_dir: str | os.PathLike | None = None
    ):
        builder = _prepared(name, data_dir)
        self._name, self._domain = name, domain
        self._directory = os.fspath(builder.data_dir)
        features = builder.info.features
        pictures = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
        if not pictures:
            raise ValueError(
                f"TFDS data set '{name}' has no image among its features "
                f"({', '.join(features)}): use another data set."
            )
        self._image, self._pictures = pictures[0], pictures
        self._id = next((key for key in ID_FEATURES if key in features), None)
        self._split, label = _find(name, builder, domain, split)
        self._data: Any = None
        # Positions in the split: all, or those of the class (one pass, without decoding images).
        self._positions: range | list[int] = range(builder.info.splits[self._split].num_examples)
        if label is not None:
            records = self._open()
            self._positions = [j for j in self._positions if records[j]["label"] == label]
        self._ids: list[str] | None = None

    @property
    def ids(self) -> list[str]:
        """All ids in order; where the data set has ids, the first call reads all records."""
        if self._ids is None:
            self._ids = [
                self._name_of(j, self._open()[j] if self._id else {}) for j in self._positions
            ]
        return self._ids

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Item:
        position = self._positions[index]
        record = self._open()[position]
        name = self._name_of(position, record)
        return {"image": images.decode(record[self._image], f"{self._name}:{name}"), "id": name}

    def __repr__(self) -> str:
        return (
            f"TfdsSource({self._name!r}, {self._domain!r}, {self._split!r}) of {len(self)} images"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_data": None}

    def _name_of(self, position: int, record: dict) -> str:
        if self._id is None:
            return f"{self._split}-{position:06d}"
        value = record[self._id]
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)

    def _open(self):
        # By directory, not by name: another process may not have the class of the builder.
        if self._data is None:
            builder = tfds.builder_from_directory(self._directory)
            # Images stay encoded, so that `images.decode` handles transparency and depth.
            skip = {key: tfds.decode.SkipDecoding() for key in self._pictures}
            self._data = builder.as_data_source(split=self._split, decoders=skip)
        return self._data


def _prepared(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set on disk as array_record; prepares the data set where necessary."""
    data_dir = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # TFDS raises ValueError, AssertionError and others, with lists of thousands of names.
    except Exception as error:
        raise ValueError(
            f"TFDS data set '{name}' is not known ({_brief(error)}): see "
            "https://www.tensorflow.org/datasets/catalog for names, configs and versions."
        ) from error
    if not builder.info.splits:
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:
            argument = "" if data_dir is None else f", data_dir='{data_dir}'"
            raise ValueError(
                f"TFDS data set '{name}' cannot be prepared in '{builder.data_dir}' "
                f'({type(error).__name__}: {_brief(error)}): run `python -c "import '
                f"tensorflow_datasets as tfds; tfds.builder('{name}'{argument})"
                ".download_and_prepare(file_format='array_record')\"` where the network can be "
                "reached, and copy that folder here."
            ) from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"TFDS data set '{name}' lies in '{builder.data_dir}' as "
            f"{builder.info.file_format.value}, which only TensorFlow reads: remove that folder, "
            "or point TFDS_DATA_DIR to another, to have it prepared as array_record."
        )
    return builder


def _find(
    name: str, builder: tfds.core.DatasetBuilder, domain: str, split: str
) -> tuple[str, int | None]:
    """The split's name in the data set, and the index of the class or None."""
    splits = builder.info.splits
    prefixes = [split, "validation"] if split == "val" else [split]
    config = builder.builder_config.name if builder.builder_config else ""
    sides = config.split("2", maxsplit=1)
    endings = [domain] + (["AB"[sides.index(domain)]] if domain in sides[:2] and sides[1:] else [])
    for ending in endings:
        for prefix in prefixes:
            if prefix + ending in splits:
                return prefix + ending, None
    label = dict(builder.info.features.items()).get("label")
    classes = label.names if isinstance(label, tfds.features.ClassLabel) else []
    present = next((prefix for prefix in prefixes if prefix in splits), None)
    if present and domain in classes:
        return present, classes.index(domain)
    raise ValueError(
        f"TFDS data set '{name}' has no images of domain '{domain}' in split '{split}': its splits "
        f"are {choices(split + domain, splits)}, its classes {choices(domain, classes)}."
    )


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:160] + " ..."
