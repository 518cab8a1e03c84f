"""Test set-up: 8 virtual CPU devices, strict rank promotion, absl flags marked as parsed."""

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Loaders with worker processes refuse to start before flags are parsed.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def golden():
    """The folder of reference vectors."""
    from pathlib import Path

    return Path(__file__).parent / "golden"
