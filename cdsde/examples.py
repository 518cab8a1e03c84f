"""Some training images of a domain, for what is computed from them when a sampler is loaded."""

from __future__ import annotations

import hashlib

import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import open_domain, resize


def of_both(config: ConfigDict, key: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Images of the target and of the sources, uint8 `[N, S, S, 3]`, and a line that names them.

    Which images these are is the same every time.

    Args:
      config: the task; its train split is read.
      key: of the config, such as "sample.match_colours": how many of each domain.

    Raises:
      ValueError: the train split of a domain is not there.
    """
    domains = (config.data.target, *config_lib.sources(config))
    images = [_of(config, domain, key) for domain in domains]
    digest = hashlib.sha256()
    for part in images:
        digest.update(part.tobytes())
    counts = ", ".join(f"{len(i)} of {d}" for i, d in zip(images, domains, strict=True))
    where = f"train, {counts} (sha256 {digest.hexdigest()[:12]})"
    return images[0], np.concatenate(images[1:]), where


def _of(config: ConfigDict, domain: str, key: str) -> np.ndarray:
    d, count = config.data, config_lib.get(config, key)
    try:
        source = open_domain(d.root, domain, "train", data_dir=d.data_dir)
    except ValueError as error:
        raise ValueError(
            f"config.{key}={count} reads training images: {error} Or set it to 0."
        ) from error
    drawn = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    read = (source[int(j)]["image"] for j in drawn)
    return np.stack([resize(image, d.image_size, filter=d.filter, fit=d.fit) for image in read])
