"""What is said where a published network is used otherwise than its file says."""

from __future__ import annotations

from absl import logging
from ml_collections import ConfigDict

from cdsde.weights.formats import registry
from cdsde.weights.formats.opened import Opened


def read(config: ConfigDict, name: str) -> Opened:
    """The published network that a name stands for; the log tells where sizes differ.

    Raises:
      ValueError: as `registry.read`.
    """
    opened = registry.read(name)
    size, side = config.data.image_size, opened.side
    if side not in (None, size) and opened.fields.get("in_channels", 3) == 3:
        logging.warning(
            "%s was made for images of %d² pixels, and config.data.image_size is %d: results are "
            "best at the former.",
            *(name, side, size),
        )
    return opened
