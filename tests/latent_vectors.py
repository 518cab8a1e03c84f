"""The reference vectors of latent diffusion (golden/latent): where they are, how near is equal."""

import json

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "latent"


@pytest.fixture(scope="module")
def close(folder):
    """`close(got, file, name)`: within the tolerance that the vectors' README gives."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]

    def check(got, file, name, expected=None):
        about = listed[f"{file}.npz"][name]
        if expected is None:
            expected = np.load(folder / f"{file}.npz")[name]
        tolerance = max(20 * about["fp32_dev"], 1e-5 * about["absmax"], 1e-6)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=name)

    return check


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, -3, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, -3)
