"""The inputs of a run, from its config: images to translate, true pairs, training examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import tokenizer
from cdsde.data.domains import JoinedSource, open_domain, open_pairs
from cdsde.data.images import Reading
from cdsde.data.sources import FilesSource, Source, all_captions


def open_input(config: ConfigDict) -> Source:
    """Opens the images to translate: `sample.input`, or the split of every source domain."""
    if config.sample.input is not None:
        return FilesSource(config.sample.input)
    names = config_lib.sources(config)
    parts = {name: open_split(config, name, config.sample.split) for name in names}
    return JoinedSource(parts) if len(parts) > 1 else parts[names[0]]


def raise_broken(broken: dict[str, str], count: int) -> None:
    """Raises a ValueError that lists the images that `eval_batches` has left out, if any.

    Args:
      broken: `{id: what is wrong}`.
      count: number of images that were to be read.
    """
    if broken:
        others = ", the others are done" if len(broken) < count else ""
        raise ValueError(
            f"{len(broken)} of {count} images have no result{others}: "
            f"{'; '.join(broken.values())}; replace the file by a whole picture, or remove it"
        )


def open_truth(config: ConfigDict) -> Source | None:
    """Opens the true pairs of `open_input`'s images, in the same order; None without pairs."""
    if config.sample.input is not None:
        return None
    d = config.data
    names = config_lib.sources(config)
    parts = {}
    for name in names:
        pairs = open_pairs(d.root, name, d.target, config.sample.split, d.pairs == "name")
        if pairs is None:
            return None
        parts[name] = pairs
    return JoinedSource(parts) if len(parts) > 1 else parts[names[0]]


def open_split(config: ConfigDict, domain: str, split: str) -> Source:
    """Opens one domain and split of the config's data."""
    return open_domain(config.data.root, domain, split, data_dir=config.data.data_dir)


def reading(config: ConfigDict) -> Reading:
    """The resizing of images for the config's networks: uint8 `[H, W, 3]` → `[S, S, 3]`."""
    d = config.data
    return Reading(d.image_size, d.filter, d.fit)


def thumbnail(config: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """How sheets show images and results: `uint8 [H, W, 3] -> uint8 [h, w, 3]`, h, w ≤ S.

    As the networks see them; where results show the whole picture, without the borders.
    """
    read = reading(config)
    if config.sample.keep_size:
        read = read._replace(fit="pad")
    return lambda image: read(image)[read.inside(*image.shape[:2])]


def training_examples(config: ConfigDict, key: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Reads a fixed random sample of training images of the target and of the sources.

    Args:
      config: the task, whose train split is read.
      key: the key that sets the number of images per domain, such as "sample.match_colours".

    Returns:
      `(target, sources, description)`: images, uint8 `[N, S, S, 3]`, and a line that identifies
      them.

    Raises:
      ValueError: the train split of a domain does not exist.
    """
    domains = (config.data.target, *config_lib.sources(config))
    images = [_examples_of(config, domain, key) for domain in domains]
    digest = hashlib.sha256()
    for part in images:
        digest.update(part.tobytes())
    counts = ", ".join(f"{len(i)} of {d}" for i, d in zip(images, domains, strict=True))
    description = f"train, {counts} (sha256 {digest.hexdigest()[:12]})"
    return images[0], np.concatenate(images[1:]), description


def _examples_of(config: ConfigDict, domain: str, key: str) -> np.ndarray:
    count = config_lib.get(config, key)
    try:
        source = open_split(config, domain, "train")
    except ValueError as error:
        raise ValueError(
            f"config.{key}={count} reads training images: {error} Or set it to 0."
        ) from error
    indices = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    read = reading(config)
    return np.stack([read(source[int(j)]["image"]) for j in indices])


def train_captions(config: ConfigDict) -> list[list[list[str]]]:
    """All captions of the training images, one list per domain.

    Raises:
      ValueError: an image has no caption.
    """
    domains = config_lib.domains(config)
    return [all_captions(open_split(config, domain, "train")) for domain in domains]


def tokenizer_of(config: ConfigDict) -> tokenizer.ClipTokenizer:
    """The tokenizer learned from the captions of the training images; it is deterministic."""
    texts = sorted({text for part in train_captions(config) for texts in part for text in texts})
    net = config.latent
    return tokenizer.learn(texts, net.vocabulary, net.text_length)
