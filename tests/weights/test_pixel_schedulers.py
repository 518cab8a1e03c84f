"""Schedulers of diffusers: every table and short run of the vectors, from the file alone."""

import json
from pathlib import Path

import diffusers_steps as steps
import numpy as np
import pytest

from cdsde.diffusion import schedules
from cdsde.weights.diffusers import schedule

FOLDER = Path(__file__).parents[1] / "golden" / "pixel" / "diffusers" / "schedulers"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name):
    entry = json.loads((FOLDER / f"{name}.json").read_text())
    for key, value in entry["tables"].items():
        if isinstance(value, str):  # "as in NAME"
            entry["tables"][key] = load(value.removeprefix("as in ").removesuffix(".json"))[
                "tables"
            ][key]
    return entry


@pytest.fixture(params=NAMES)
def case(request, tmp_path):
    entry = load(request.param)
    config = entry["scheduler_config.json"]
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    is_ddim = config["_class_name"].startswith("DDIM")
    return entry, schedule.read_scheduler(tmp_path), is_ddim


def test_tables(case):
    entry, found, is_ddim = case
    tables, config = entry["tables"], entry["scheduler_config.json"]
    # PyTorch's roots of float32 are not rounded correctly, and zero SNR magnifies it in β.
    rescaled = config.get("rescale_betas_zero_snr", False)
    near = {"rtol": 1e-3 if rescaled else 5e-7, "atol": 0}
    np.testing.assert_allclose(found.beta, np.float32(tables["betas"]), **near)
    alpha_bar = np.float32(tables["alphas_cumprod"])
    np.testing.assert_allclose(
        found.alpha_bar, alpha_bar, rtol=2e-6 if rescaled else 5e-7, atol=3e-7 if rescaled else 0
    )
    exact = schedules.from_beta(np.float32(tables["betas"])).alpha_bar
    np.testing.assert_array_equal(exact, alpha_bar)
    assert (found.alpha_bar[-1] == 0) == rescaled
    for count, expected in tables["timesteps"].items():
        t = schedule.timesteps(found, int(count))
        np.testing.assert_array_equal(t, expected)
        np.testing.assert_array_equal(steps.previous(found, t, is_ddim), tables["previous"][count])


def nhwc(value):
    value = np.asarray(value, np.float64)
    return np.moveaxis(value, -3, -1) if value.ndim >= 4 else value


def test_noise_and_velocity(case):
    entry, found, _ = case
    forward = {k: np.asarray(v, np.float64) for k, v in entry["forward"].items()}
    a = found.alpha_bar[forward["t"].astype(int)].astype(np.float64).reshape(-1, 1, 1, 1)
    x0, noise = forward["x0"], forward["noise"]
    close = {"rtol": 0, "atol": 2e-6}
    noisy = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise
    np.testing.assert_allclose(noisy, forward["noisy"], **close)
    velocity = np.sqrt(a) * noise - np.sqrt(1 - a) * x0
    np.testing.assert_allclose(velocity, forward["velocity"], **close)


def test_run(case):
    entry, found, is_ddim = case
    run = entry["run"]
    t = np.asarray(run["timesteps"])
    np.testing.assert_array_equal(t, schedule.timesteps(found, run["num_inference_steps"]))
    before = steps.previous(found, t, is_ddim)
    outputs, states, images, noise = (
        nhwc(run[key]) for key in ("model_output", "states", "pred_x0", "noise")
    )
    tolerance = max(1e-5 * run["absmax"], 5 * run["f64_dev"])
    x = nhwc(run["initial"])
    for n in range(len(t)):
        z = noise[n] if n < len(noise) else None
        if is_ddim:
            x, x0 = steps.ddim(
                found, x, outputs[n], t[n], before[n], z, run["eta"],
                run["use_clipped_model_output"],
            )  # fmt: skip
        else:
            x, x0 = steps.ddpm(found, x, outputs[n], t[n], before[n], z)
        np.testing.assert_allclose(x, states[n], rtol=0, atol=tolerance, err_msg=f"state {n}")
        np.testing.assert_allclose(x0, images[n], rtol=0, atol=tolerance, err_msg=f"image {n}")
    expected = run.get("variance")
    if expected is not None:
        got = [steps.variance(found, t[n], before[n], is_ddim) for n in range(len(expected))]
        if found.variance == "fixed_small_log":  # there diffusers means the deviation
            got = np.sqrt(got)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)
