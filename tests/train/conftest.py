"""A stage that learns in no time, for tests of the loop around it."""

import pytest
from absl import logging
from train_helpers import one_colour

from cdsde.train import stages


@pytest.fixture
def toy(monkeypatch, on_devices):
    monkeypatch.setattr(stages, "score", one_colour)
    on_devices(1)


@pytest.fixture
def warned(monkeypatch):
    """What is logged as a warning, as texts."""
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said
