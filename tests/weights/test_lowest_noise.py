"""Below the lowest noise of its training a network is told that noise (sigma_min of its file)."""

import numpy as np
import pytest
from pixel_vectors import PIXEL

from cdsde.diffusion import paths, schedules
from cdsde.weights.formats import diffusers_unet, edm, score_sde

LOWEST = 0.02
SIGMA = np.array([0.005, 0.01, 0.02, 0.5])
TOLD = np.array([0.02, 0.02, 0.02, 0.5])
ALPHA_BAR = 1 / (1 + SIGMA**2)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ({"kind": "sigma"}, TOLD),
        ({"kind": "log_sigma", "factor": 0.25}, np.log(TOLD) / 4),
        ({"kind": "flow"}, TOLD / (1 + TOLD)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_it_is_told_no_less(time, expected):
    path = paths.Path("ve", "minus_eps", time, sigma_min=LOWEST)
    found, free = (paths.tables(p, ALPHA_BAR) for p in (path, path._replace(sigma_min=None)))
    np.testing.assert_allclose(found.time, expected, rtol=1e-12)
    assert (free.time[:2] < expected[0]).all()
    # It sees the same image, and its noise is what it says.
    for ours, others in zip(found[:-1], free[:-1], strict=True):
        np.testing.assert_array_equal(ours, others)


@pytest.mark.parametrize("half", [1, 0.5])
def test_a_score_is_the_noise_over_what_it_is_told(half):
    """So a network that predicts the noise n, and divides it by that, gives n at every level."""
    data = (-1, 1) if half == 1 else (0, 1)
    path = paths.Path("ve", "score_ve", {"kind": "sigma"}, data, sigma_min=LOWEST)
    found = paths.tables(path, 1 / (1 + (SIGMA / half) ** 2))
    n = 0.7
    np.testing.assert_allclose(found.time, TOLD, rtol=1e-12)
    np.testing.assert_allclose(found.q * (-n / found.time), n, rtol=1e-12)
    assert not found.p.any() and not found.o.any()


@pytest.mark.parametrize(
    ("read", "name", "lowest"),
    [
        (edm.read, "edm/ncsnpp_ve.pkl", 0.02),
        (edm.read, "edm/adm_edm_cond.pkl", None),
        (score_sde.read, "score_sde/ncsnpp_ve.pth", 0.01),
        (diffusers_unet.read, "diffusers/c_ncsnpp", 0.01),
    ],
)
def test_files_tell_it(read, name, lowest):
    path = paths.Path(**read(PIXEL / name).path)
    assert path.sigma_min == (lowest and pytest.approx(lowest))
    told = paths.tables(path, schedules.linear().alpha_bar).time
    if lowest and path.time["kind"] == "sigma":
        assert told.min() == path.sigma_min
