"""Contact sheets of the score network during training."""

from __future__ import annotations

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import contact_sheet, eval_batches
from cdsde.data.inputs import open_split, reading
from cdsde.runtime import mesh
from cdsde.translation.compiled import Sampler

IMAGES = 8  # per sheet


class Preview:
    """SDEdit of the source's first val images by the score network in training."""

    def __init__(self, config: ConfigDict):
        config = ConfigDict(config.copy_and_resolve_references())
        config.method = "sdedit"
        start = min(config.sdedit.start, config.sde.num_steps)
        plain = dict(rounds=1, match_colours=0, variance="fixedsmall")
        config.sample.update(dict(start=start, steps=min(25, start), clip=True, **plain))
        source = _val_or_train(config)
        count = min(IMAGES, len(source))
        batches = eval_batches(source, reading(config), batch_size=count, indices=range(count))
        self._batch = next(batches)
        self._config, self._sampler = config, None

    def __call__(self, ema) -> np.ndarray:
        """The sheet for averaged parameters `ema` (host arrays), uint8 `[H, W, 3]`."""
        params = {"score": ema}
        if self._sampler is None:
            self._sampler = Sampler(self._config, params)
        self._sampler.params = mesh.put_replicated(params, self._sampler.devices)
        results = self._sampler(self._batch["image"], self._batch["id"])
        rows = [[a, b] for a, b in zip(self._batch["image"], results, strict=True)]
        return contact_sheet(rows, ["source", "SDEdit"], blocks=2 if len(rows) > 4 else 1)


def _val_or_train(config: ConfigDict):
    """The source's val split, or its train split if it has none."""
    domain = config_lib.sources(config)[0]
    try:
        return open_split(config, domain, "val")
    except ValueError as error:
        logging.info("sheets show training images of '%s': %s", domain, error)
        return open_split(config, domain, "train")
