"""The log of the programs on standard error."""

from __future__ import annotations

import warnings

from absl import logging


def show_own() -> None:
    """Shows this package's log from INFO, and other packages' only from WARNING.

    Orbax alone logs a dozen lines per save.
    """
    # Pillow warns of large pictures; those that it refuses have a sentence of their own (decode).
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > logging.converter.STANDARD_INFO or "cdsde" in record.pathname
        )
    )
