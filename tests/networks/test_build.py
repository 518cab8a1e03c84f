"""Networks as the config describes them."""

import numpy as np
import pytest
from helpers import random_params

from cdsde.networks import build

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_learned_variance_leaves_the_noise_as_it_is(tiny, on_devices, prediction):
    on_devices(1)
    config = tiny(score__learn_sigma=True, score__prediction=prediction)
    params = random_params(config, "score")
    apply = build.score_model(config).apply
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype("f4")
    eps, spread = apply(params, x, 300.0, variance=True)
    assert spread.shape == x.shape
    np.testing.assert_array_equal(eps, apply(params, x, 300.0))
