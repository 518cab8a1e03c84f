"""What the programs tell on the screen."""

from __future__ import annotations

from absl import logging


def show_own() -> None:
    """Progress of this package; of other people's modules only warnings.

    Orbax alone tells a dozen lines a save.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > logging.converter.STANDARD_INFO or "cdsde" in record.pathname
        )
    )
