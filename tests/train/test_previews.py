"""Sheets of the score network in training."""

import numpy as np
import pytest
from helpers import random_params

from cdsde.train import previews

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize(
    "changes",
    [
        {"sample__match_colours": 20},
        {"sde__num_steps": 60, "sample__start": 40},  # fewer levels than SDEdit's start
        {"method": "ddib"},
    ],
    ids=["colours", "levels", "method"],
)
def test_a_sheet_needs_the_score_network_alone(tiny, on_devices, changes):
    on_devices(1)
    config = tiny(**changes)
    params = random_params(config, "score")
    sheet = previews.Preview(config)(params)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.std() > 0
