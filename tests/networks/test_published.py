"""One Gaussian score, dressed as each kind of published network, gives the same translations."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params
from sampling_helpers import batch

from cdsde.diffusion import paths, schedules
from cdsde.networks import build, published
from cdsde.translation.compiled import Sampler

MEAN, SPREAD = 0.3, 0.4
FLOW = {"kind": "flow", "scale": 1000.0}
LEVELS = {"kind": "levels", "schedule": "linear"}
VP = {"kind": "vp", "beta_min": 0.1, "beta_max": 20.0, "scale": 999}
EDM = {"kind": "log_sigma", "factor": 0.25}
DRESSES = {
    "ddpm": ("vp", "eps", LEVELS),
    "clean image": ("vp", "x0", LEVELS),
    "v": ("vp", "v", LEVELS),
    "VP-SDE": ("vp", "score_vp", VP),
    "VE-SDE": ("ve", "score_ve", {"kind": "sigma"}),
    "EDM": ("edm", "F", EDM),
    "EDM's VE": ("ve", "minus_eps", {"kind": "log_sigma", "unit": 2.0}),
    "rectified flow": ("flow", "u", FLOW),
    "flow from noise": ("flow", "minus_u", {"kind": "minus_flow"}),
}


class Gaussian(nn.Module):
    """The perfect network for pixels from N(MEAN, SPREAD²), as the path `seen` wants it.

    It knows σ from its time input alone, by a table of the times of all levels.
    """

    seen: Any

    @nn.compact
    def __call__(self, x, t):
        path = published.path_of(published.Description("gaussian", {}, dict(self.seen)))
        low, high = path.data
        half, middle = (high - low) / 2, (high + low) / 2
        alpha_bar = schedules.linear().alpha_bar.astype(np.float64)
        times = paths.tables(path, alpha_bar).time
        order = np.argsort(times)
        sigma = half * np.sqrt(1 / alpha_bar - 1)
        log_sigma = jnp.interp(t, times[order].astype("f4"), np.log(sigma)[order].astype("f4"))
        sigma = schedules.expand(jnp.exp(log_sigma), x)
        a = 1 / jnp.sqrt(1 + sigma**2)
        s = sigma * a
        d = path.sigma_data
        factor = {"vp": a, "ve": 1.0, "flow": 1 / (1 + sigma), "edm": 1 / jnp.sqrt(sigma**2 + d**2)}
        x_ve = x / factor[path.state]
        spread = half * SPREAD
        mean = half * MEAN + middle
        shrink = sigma**2 + spread**2
        eps = sigma * (x_ve - mean) / shrink
        x0 = mean + spread**2 * (x_ve - mean) / shrink
        skip, out = d**2 / (sigma**2 + d**2), sigma * d / jnp.sqrt(sigma**2 + d**2)
        outputs = {
            "eps": eps,
            "minus_eps": -eps,
            "x0": x0,
            "v": a * eps - s * x0,
            "u": eps - x0,
            "minus_u": x0 - eps,
            "score_vp": -eps / s,
            "score_ve": -eps / sigma,
            "F": (x0 - skip * x_ve) / out,
        }
        return outputs[path.output]


@pytest.fixture
def dressed(monkeypatch, tiny):
    """`dressed(dress, data, method)`: a task whose score network wears that dress."""
    monkeypatch.setitem(published.ARCHITECTURES, "gaussian", Gaussian)

    def make(dress, data=(-1, 1), **changes):
        state, output, time = DRESSES[dress]
        path = {"state": state, "output": output, "time": time, "data": list(data)}
        plain = published.Description("gaussian", {"seen": path}, path)
        config = tiny(**changes)
        config.score.update(arch="published", published=published.to_text(plain))
        return config

    return make


def expected_eps(x, alpha_bar):
    a, s = (schedules.expand(np.sqrt(v), x) for v in (alpha_bar, 1 - alpha_bar))
    return s * (x - a * MEAN) / (s**2 + (a * SPREAD) ** 2)


@pytest.mark.parametrize("data", [(-1, 1), (0, 1)])
@pytest.mark.parametrize("dress", DRESSES)
def test_every_dress_is_the_same_noise(dressed, dress, data):
    config = dressed(dress, data)
    apply = build.score_model(config).apply
    # Half the noise of the lowest levels of images in [0, 1] lies below a table's first level.
    lowest = 10 if data == (0, 1) and DRESSES[dress][2] == LEVELS else 0
    i = np.array([lowest, 10, 100, 500, 900, 999])
    alpha_bar = schedules.linear().alpha_bar[i]
    e = np.random.default_rng(0).standard_normal((len(i), 16, 16, 3)).astype("f4")
    x = np.asarray(schedules.perturb(np.full_like(e, MEAN), e, alpha_bar))
    found = np.asarray(apply({}, x, i))
    expected = np.asarray(expected_eps(x, alpha_bar))
    # Near the clean image ε is a small difference, which some dresses take in float32.
    assert np.abs(found - expected)[:1].max() < 1e-3
    assert np.abs(found - expected)[1:].max() < 1e-4
    one = np.asarray(apply({}, x[2:3], jnp.int32(100)))
    np.testing.assert_allclose(one, found[2:3], atol=1e-6)


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize(
    ("method", "dresses"),
    [
        ("sdedit", DRESSES),
        pytest.param("egsde", DRESSES, marks=pytest.mark.slow),
    ],
)
def test_methods_do_not_see_the_dress(dressed, method, dresses):
    images, ids = batch()
    results = {}
    for dress in dresses:
        changes = {"method": method, "sample__start": 500, "sample__steps": 5}
        config = dressed(dress, **changes)
        params = {"score": {}}
        if method == "egsde":
            params["classifier"] = random_params(config, "classifier")
        results[dress] = Sampler(config, params).states(images, ids)[0]
    reference = results.pop("ddpm")
    assert reference.std() > 0.1
    for dress, states in results.items():
        assert np.abs(states - reference).max() < 2e-3, dress
