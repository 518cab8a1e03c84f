"""EDM's networks and preconditionings equal the published program (golden/pixel/edm)."""

import functools
import json
from pathlib import Path

import edm_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_helpers import noise, quick_jit

from cdsde.diffusion import paths
from cdsde.networks.edm_song import SongUNet
from cdsde.weights.formats import edm, edm_pickle

GOLDEN = Path(__file__).parents[1] / "golden" / "pixel" / "edm"
FILES = sorted(path.stem for path in GOLDEN.glob("*.pkl") if not path.stem.startswith("canary"))
FLOORS = json.loads((GOLDEN / "floors.json").read_text())["floors"]
RECIPE = json.loads((GOLDEN / "recipe.json").read_text())
RUNS = json.loads((GOLDEN / "sampler.json").read_text())
FULL = json.loads((GOLDEN / "full_size.json").read_text())

pytestmark = pytest.mark.usefixtures("exact_products")


@functools.cache
def vectors(file):
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        return {k: np.moveaxis(v, -3, -1) if v.ndim >= 4 else v for k, v in arrays.items()}


def assert_near(actual, file, name):
    """Relative to the largest value of each slice [k]."""
    expected, floor = vectors(file)[name], FLOORS[f"{file}.npz"].get(name, {})
    assert actual.shape == expected.shape
    axes = tuple(range(1, expected.ndim))
    off = np.abs(actual - expected).max(axes) / np.abs(expected).max(axes)
    assert off.max() < max(1e-5, 5 * floor.get("worst_slice_rel", 0)), (name, off)


class Denoiser:
    """x, σ → D, F and c_noise of an opened network, through the path adapter, in float64."""

    def __init__(self, opened):
        self.params, self.path = opened.params, paths.Path(**opened.path)
        self.module = edm.NETWORKS[opened.arch](**edm.tupled(opened.fields))
        self.apply = quick_jit(self.module.apply)

    def __call__(self, x, sigma, y=None, augment=None):
        sigma = np.asarray(sigma, np.float64).reshape(-1, 1, 1, 1)
        alpha_bar = 1 / (1 + sigma**2)
        t = paths.tables(self.path, alpha_bar.ravel())
        p, q, o, k, d = (table.reshape(sigma.shape) for table in t[:5])
        state = np.sqrt(alpha_bar) * x
        seen, time = (k * state + d).astype(np.float32), t.time.astype(np.float32)
        y = None if y is None else jnp.asarray(y)
        raw = np.asarray(self.apply(self.params, seen, time, y, augment))
        eps = p * state + o + q * raw[..., : x.shape[-1]]
        return x - sigma * eps, raw, t.time


@functools.cache
def denoiser(file):
    return Denoiser(edm.read(GOLDEN / f"{file}.pkl"))


def classes(file):
    return vectors(file)["labels"].argmax(1) if "labels" in vectors(file) else None


@pytest.mark.parametrize("file", FILES)
def test_sweep_over_the_noise_and_two_images_at_two_levels(file):
    v, y = vectors(file), classes(file)
    levels = len(v["sigma"])
    x = np.concatenate([v["x"][:, 0], v["x_mixed"]])
    y = None if y is None else np.concatenate([y[[0] * levels], y])
    clean, raw, time = denoiser(file)(x, np.concatenate([v["sigma"], v["sigma_mixed"]]), y)
    assert_near(clean[:levels, None], file, "D")
    assert_near(raw[:levels, None], file, "F")
    assert_near(clean[levels:], file, "D_mixed")
    dev = FLOORS[f"{file}.npz"]["c_noise"]["f64_dev"]
    np.testing.assert_allclose(time[:levels], v["c_noise"], rtol=1e-6, atol=2 * dev)


@pytest.mark.parametrize("file", FILES)
def test_labels_that_are_not_given_and_labels_of_augmentation(file):
    v, y = vectors(file), classes(file)
    inputs = v["x_mixed"], v["sigma_mixed"]
    if y is not None:
        assert_near(denoiser(file)(*inputs)[0], file, "D_mixed_no_labels")
    if "augment_labels" in v:
        clean = denoiser(file)(*inputs, y, v["augment_labels"])[0]
        assert_near(clean, file, "D_mixed_augment_labels")


@pytest.mark.parametrize("file", FILES)
def test_the_limits_of_the_noise(file):
    constants = edm_pickle.load(GOLDEN / f"{file}.pkl").constants
    limits = [min(constants[f"sigma_{end}"], 1e30) for end in ("min", "max")]
    np.testing.assert_array_equal(limits, vectors(file)["sigma_min_max"])
    assert (denoiser(file).path.sigma_max or 1e30) == limits[1]


def sampled(run, denoise, latents, draws):
    """EDM's sampler (algorithm 2, Heun): the result, and σ and D of each call."""
    calls = []

    def slope(x, sigma):
        calls.append((sigma, denoise(x, sigma)))
        return (x - calls[-1][1]) / sigma

    steps, low, high, rho = run["num_steps"], 0.002, 80, 7
    ramp = np.arange(steps) / (steps - 1)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    levels = [*levels, 0.0]
    x = latents.astype(np.float64) * levels[0]
    for i, (now, then) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        churns = run.get("S_min", 0) <= now <= run.get("S_max", np.inf)
        gamma = min(run.get("S_churn", 0) / steps, np.sqrt(2) - 1) if churns else 0
        hat = now * (1 + gamma)
        added = np.sqrt(hat**2 - now**2) * run.get("S_noise", 1)
        x = x + added * draws[i] if draws is not None else x
        first = slope(x, hat)
        following = x + (then - hat) * first
        if then:
            second = slope(following, then)
            following = x + (then - hat) * (first + second) / 2
        x = following
    return x, *map(np.stack, zip(*calls, strict=True))


def quickly(names, slow):
    """Parameters of a test, of which `slow` repeat what others show."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in slow else []) for n in names]


EVERY_RUN = [f"{file}/{name}" for file, about in RUNS.items() for name in about["runs"]]


@pytest.mark.parametrize("run", quickly(EVERY_RUN, ["ddpmpp_edm_cond/heun"]))
def test_published_sampler(run):
    file, name = run.split("/")
    v, y, about = vectors(file), None, RUNS[file]
    if (label := about.get("labels_of_first")) is not None:
        y = np.array([label])
    latents, draws = v[f"sampler_{name}_latents"], v.get(f"sampler_{name}_noise")

    network = denoiser(file)
    data = np.float32(network.path.sigma_data)

    def denoise(x, sigma):
        # Equation (7) of the paper in float32, as published: at a low σ the sampler's slope
        # (x - D)/σ magnifies the last bit of D.
        x, sigma = x.astype(np.float32), np.float32(sigma)
        total = sigma**2 + data**2
        seen, time = x / np.sqrt(total), np.log(sigma) / 4
        raw = np.asarray(network.apply(network.params, seen, time, y))
        return data**2 / total * x + sigma * data / np.sqrt(total) * raw

    result, sigmas, denoised = sampled(about["runs"][name], denoise, latents, draws)
    np.testing.assert_allclose(sigmas, v[f"sampler_{name}_sigmas"], rtol=1e-7)
    assert_near(denoised, file, f"sampler_{name}_denoised")
    assert_near(result, file, f"sampler_{name}_result")


def iddpm_table(steps=1000, c1=0.001, c2=0.008):
    """The README's u."""

    def alpha_bar(j):
        return np.sin(np.float32(0.5 * np.pi) * np.float32(j) / steps / (c2 + 1)) ** 2

    u = np.zeros(steps + 1, np.float32)
    for j in range(steps, 0, -1):
        ratio = max(alpha_bar(np.float32(j - 1)) / alpha_bar(np.float32(j)), np.float32(c1))
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / np.float32(ratio) - 1)
    return u


@pytest.mark.parametrize("name", quickly(RECIPE, ["ncsnpp_edm_cond"]))
@pytest.mark.slow
def test_larger_networks_and_rarer_flags(name, tmp_path):
    case, v = RECIPE[name], vectors("recipe")
    double = 2 if case["precond"] == "iDDPMPrecond" else 1
    network, arguments = network_of(case, double)
    state_dict = edm_files.recipe_weights(network, arguments, case["weights_seed"])
    if f"{name}_u" in v:
        state_dict["u"] = v[f"{name}_u"]
        np.testing.assert_allclose(iddpm_table(len(state_dict["u"]) - 1), state_dict["u"], 1e-4)
    named = {k if k == "u" else f"model.{k}": value.shape for k, value in state_dict.items()}
    assert (len(named), edm_files.keys_sha256(named)) == (case["keys"], case["keys_sha256"])

    content = edm_files.snapshot(case["precond"], network, arguments, state_dict)
    edm_files.write(tmp_path / "network.pkl", content)
    sigma = np.asarray(case["sigma"], np.float32)
    x = noise(case["weights_seed"], 9000, np.moveaxis(v[f"{name}_D"], -1, 1).shape)
    x = x * np.sqrt(np.float32(0.25) + sigma**2).reshape(-1, 1, 1, 1)
    y = case["class_of_each"]
    denoise = Denoiser(edm.read(tmp_path / "network.pkl"))
    clean, _, time = denoise(np.moveaxis(x, 1, -1), sigma, None if y is None else np.array(y))
    assert_near(clean, "recipe", f"{name}_D")
    dev = FLOORS["recipe.npz"][f"{name}_c_noise"]["f64_dev"]
    np.testing.assert_allclose(time, v[f"{name}_c_noise"], rtol=1e-6, atol=2 * dev)


def network_of(case, double=1):
    """Class and arguments of a network in recipe.json or full_size.json."""
    arguments = {k: v for k, v in case["net"].items() if k not in ("class_name", "model_type")}
    channels = case.get("img_channels", 3)
    arguments |= {"img_resolution": case["img_resolution"], "label_dim": case["label_dim"]}
    arguments |= {"in_channels": channels, "out_channels": double * channels}
    return case["net"]["model_type"], arguments


@pytest.mark.parametrize("name", FULL)
def test_published_networks_have_the_published_keys(name):
    network, arguments = network_of(FULL[name])
    found = edm_files.shapes(network, arguments)
    filters = edm.filters(network, edm.fields_of(network, arguments))
    found |= {key: kernel.shape for key, kernel in filters.items()}
    named = {f"model.{key}": shape for key, shape in found.items()}
    assert (len(named), edm_files.keys_sha256(named)) == (
        FULL[name]["keys"],
        FULL[name]["keys_sha256"],
    )


def test_labels_for_a_network_without_them():
    network = SongUNet(channels=8, channel_mult=(1,), num_blocks=1)
    x = jnp.zeros((1, 8, 8, 3))
    for wrong, match in (({"y": jnp.zeros(1, int)}, "without classes"), ({"augment": x}, "augmen")):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(network.init, jax.random.key(0), x, 1.0, **wrong)
    with pytest.raises(ValueError, match="encoder is 'other': choose one of standard, skip, res"):
        jax.eval_shape(SongUNet(encoder="other").init, jax.random.key(0), x, 1.0)
