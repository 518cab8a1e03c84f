"""diffusers' pixel pipelines: network, reader and runs equal the published ones."""

import functools
import hashlib
import json
import re
from pathlib import Path

import diffusers_steps as steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from network_helpers import noise

from cdsde.weights.diffusers import networks, schedule
from cdsde.weights.formats import diffusers_unet

FOLDER = Path(__file__).parents[1] / "golden" / "pixel" / "diffusers"
FLOORS = json.loads((FOLDER / "floors.json").read_text())["floors"]
RECIPE = json.loads((FOLDER / "recipe.json").read_text())
FULL = json.loads((FOLDER / "full_size.json").read_text())
FILES = {
    "a_ddpm_root": "a_ddpm",
    "b_train_unconditional": "b_train_unconditional",
    "c_ncsnpp": "c_ncsnpp",
}
pytestmark = pytest.mark.usefixtures("exact_products", "compile_quickly")


def nhwc(x):
    return np.moveaxis(x, -3, -1)


@functools.cache
def opened(name):
    return diffusers_unet.read(FOLDER / name)


@functools.cache
def apply(name):
    """The network on one or two images, and one program for both."""
    network, params = diffusers_unet.module(opened(name).fields), opened(name).params
    run = jax.jit(network.apply)

    def on_two(x, t):
        twice = np.broadcast_to(np.float32(x), (2, *x.shape[1:]))
        return run(params, twice, np.broadcast_to(np.float32(t), (2,)))[: len(x)]

    return on_two


@functools.cache
def vectors(name):
    with np.load(FOLDER / f"{FILES[name]}.npz") as arrays:
        return dict(arrays)


def assert_near(actual, expected, file, array):
    """Each slice [k] at the tolerance of the vectors."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    floor = FLOORS[file].get(array, FLOORS[file]) if array else FLOORS[file]
    tolerance = max(1e-5, 5 * floor.get("worst_slice_rel", 0))
    for k in range(len(expected)):
        off = np.abs(actual[k] - expected[k]).max() / np.abs(expected[k]).max()
        assert off < tolerance, (file, array, k, off)


@pytest.mark.parametrize("name", FILES)
def test_outputs(name):
    found, v = apply(name), vectors(name)
    sigma = "sigma" in v
    times, x = (v["sigma"], nhwc(v["x"])) if sigma else (v["t"], nhwc(v["x"][:1])[None])
    out = [found(x[k if sigma else 0], t) for k, t in enumerate(times)]
    assert_near(np.stack(out), nhwc(v["out"]), f"{FILES[name]}.npz", "out")
    kind = "sigma_mixed" if sigma else "t_mixed"
    out = found(nhwc(v["x_mixed" if sigma else "x"]), v[kind])
    assert_near(out, nhwc(v["out_mixed"]), f"{FILES[name]}.npz", "out_mixed")


@pytest.mark.parametrize("name", [n for n in FILES if "grad_mixed" in vectors(n)])
def test_gradient(name):
    v, network, params = (
        vectors(name),
        diffusers_unet.module(opened(name).fields),
        opened(name).params,
    )

    @jax.jit
    def gradient(params, x, t, cotangent):
        return jax.vjp(lambda x: network.apply(params, x, t), x)[1](cotangent)[0]

    got = gradient(params, nhwc(v["x"]), jnp.float32(v["t_mixed"]), nhwc(v["cotangent"]))
    assert_near(got, nhwc(v["grad_mixed"]), f"{FILES[name]}.npz", "grad_mixed")


RUNS = [
    (name, key.removesuffix("_states"))
    for name in FILES
    for key in vectors(name)
    if re.match(r"dd\w+", key) and key.endswith("_states")
]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_pipeline(name, kind):
    """The pipeline's five steps, by the levels, prediction and bound that the reader gives."""
    v, ddim = vectors(name), kind.startswith("ddim")
    folder = FOLDER / name
    folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    found = schedule.read_scheduler(folder, "DDIMScheduler" if ddim else None)
    assert opened(name).path["time"]["alpha_bar"] == found.alpha_bar.tolist()
    t = v[f"{kind}_timesteps"]
    np.testing.assert_array_equal(t, schedule.timesteps(found, len(t)))
    before = steps.previous(found, t, ddim)
    states, images = nhwc(v[f"{kind}_states"]), nhwc(v[f"{kind}_pred_x0"])
    draws = nhwc(v[f"{kind}_noise"]) if f"{kind}_noise" in v else []
    got_states, got_images = [states[0]], []
    for n in range(len(t)):
        x = got_states[-1]
        out = np.asarray(apply(name)(np.float32(x), t[n]), np.float64)
        z = draws[n] if n < len(draws) else None
        if ddim:
            eta = float(kind.removeprefix("ddim_eta"))
            x, x0 = steps.ddim(found, x, out, t[n], before[n], z, eta)
        else:
            x, x0 = steps.ddpm(found, x, out, t[n], before[n], z)
        got_states.append(x)
        got_images.append(x0)
    file = f"{FILES[name]}.npz"
    assert_near(np.stack(got_states), states, file, f"{kind}_states")
    assert_near(np.stack(got_images), images, file, f"{kind}_pred_x0")
    picture = np.clip(got_states[-1] / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(picture, v[f"{kind}_images"], rtol=0, atol=1e-5)


def sigmas(config, count):
    """Tables of the VE scheduler: times, σ of them, and σ of the levels."""
    low, high = config["sigma_min"], config["sigma_max"]
    t = np.linspace(1, config["sampling_eps"], count)
    return t, low * (high / low) ** t, np.geomspace(low, high, count)


@pytest.mark.parametrize("name", [n for n in FILES if "pc_states" in vectors(n)])
def test_score_pipeline(name):
    """Predictor and corrector, with the score at σ of images in [0, 1]."""
    v, seen = vectors(name), opened(name).path
    config = json.loads((FOLDER / name / "scheduler" / "scheduler_config.json").read_text())
    assert seen["sigma_max"] == config["sigma_max"]
    for key in v:
        if match := re.fullmatch(r"discrete_sigmas_(\d+)", key):
            tables = sigmas(config, int(match[1]))
            for kind, table in zip(("timesteps", "sigmas", "discrete_sigmas"), tables, strict=True):
                np.testing.assert_allclose(v[f"{kind}_{match[1]}"], table, rtol=1e-5)
    count = len(v["pc_means"])
    t, sigma, levels = sigmas(config, count)
    states, means = nhwc(v["pc_states"]), nhwc(v["pc_means"])
    draws = iter(nhwc(v["pc_noise"]).astype(np.float64))
    x = next(draws) * config["sigma_max"]
    got_states, got_means = [x], []

    def score(x, at):
        return np.asarray(apply(name)(np.float32(x), at), np.float64)

    def length(x):
        return np.linalg.norm(x.reshape(len(x), -1), axis=-1).mean()

    for n in range(count):
        for _ in range(config["correct_steps"]):
            g, z = score(x, sigma[n]), next(draws)
            step = 2 * (config["snr"] * length(z) / length(g)) ** 2
            x = x + step * g + np.sqrt(2 * step) * z
            got_states.append(x)
        i = int(np.float32(t[n]) * np.float32(count - 1))
        change = levels[i] ** 2 - (levels[i - 1] if i else 0) ** 2
        mean = x + change * score(x, sigma[n])
        x = mean + np.sqrt(change) * next(draws)
        got_means.append(mean)
        got_states.append(x)
    file = f"{FILES[name]}.npz"
    assert_near(np.stack(got_states), states, file, "pc_states")
    assert_near(np.stack(got_means), means, file, "pc_means")
    picture = np.clip(got_means[-1], 0, 1)
    np.testing.assert_allclose(picture, v["pc_images"], rtol=0, atol=1e-3)


# --- recipes and full size ---


def published(config):
    """Published names and shapes of the network of a config.json."""
    network = diffusers_unet.module(diffusers_unet.fields_of(config, "config.json"))
    shapes = jax.eval_shape(network.init, jax.random.key(0), *diffusers_unet.inputs(network))
    leaves = traverse_util.flatten_dict(shapes["params"])
    return network, dict(networks.published(path, leaf.shape) for path, leaf in leaves.items())


def digest(shapes):
    lines = [f"{name} {','.join(map(str, shapes[name]))}" for name in sorted(shapes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("name", FULL)
def test_full_size_trees(name):
    entry = FULL[name]
    _, shapes = published(entry["cfg"])
    assert len(shapes) == entry["keys"]
    assert digest(shapes) == entry["keys_sha256"]
    old = {}
    for key, shape in shapes.items():
        early = re.sub(r"to_[qkv]|to_out\.0", lambda m: OLD[m[0]], key)
        assert networks.current_name(early) == key
        old[early] = shape
    assert digest(old) == entry["keys_sha256_old_attention_names"]


def recipe_array(seed, j, name, shape):
    n = noise(seed, j, shape)
    if n.ndim >= 2:
        return n / np.float32(np.sqrt(np.prod(shape[1:])))
    if name == "time_proj.weight":
        return 16 * n
    return np.float32(name.endswith(".weight")) + np.float32(0.1) * n


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "ddpm_cifar10_32" else n for n in RECIPE],
)
@pytest.mark.slow
def test_recipes(name):
    entry = RECIPE[name]
    network, shapes = published(entry["cfg"])
    assert digest(shapes) == entry["keys_sha256"]
    state = {
        key: recipe_array(entry["weights_seed"], j, key, shapes[key])
        for j, key in enumerate(sorted(shapes))
    }
    params = networks.fit(network, diffusers_unet.inputs(network), state, name)
    seed, index, *shape = map(int, re.findall(r"\d+", entry["x"]))
    x, t = noise(seed, index, shape), jnp.asarray(entry["t"], jnp.float32)
    if entry["x"].endswith("* t"):
        x = x * np.asarray(t).reshape(-1, 1, 1, 1)
    y = [] if entry["class_labels"] is None else [jnp.asarray(entry["class_labels"])]
    out = jax.jit(network.apply)(params, nhwc(x), t, *y)
    with np.load(FOLDER / "recipe.npz") as arrays:
        expected = nhwc(arrays[name])
    FLOORS.setdefault(name, FLOORS["recipe.npz"].get(name, {}))
    assert_near(out, expected, name, None)
