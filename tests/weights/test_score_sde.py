"""Checkpoints of score_sde_pytorch: DDPM++ and NCSN++ equal the published code's numbers."""

import json
import re
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from pixel_vectors import (
    PIXEL,
    at_times,
    check,
    from_weights,
    keys_sha256,
    nhwc,
    read_json,
    recipe_weights,
    save,
    shapes_of,
)

from cdsde.diffusion import paths
from cdsde.networks.ncsnpp import NCSNpp
from cdsde.weights.formats import beside, score_sde
from cdsde.weights.torch import pickle_reader, plain_objects

FOLDER = PIXEL / "score_sde"
NAMES = sorted(path.stem for path in FOLDER.glob("*.pth"))
RECIPE = read_json(FOLDER / "recipe.json")
# The files of the published configurations that full_size.json names.
CIFAR = {"nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4}
CELEBA = {"nf": 128, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2}
FULL = {
    "vp/cifar10_ddpmpp_continuous": {**CIFAR, "size": 32},
    "ve/cifar10_ncsnpp_continuous": {**CIFAR, "size": 32, "progressive_input": "residual"},
    "ve/celebahq_256_ncsnpp_continuous": {
        **CELEBA, "size": 256, "num_scales": 2000, "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("exact_products")


def module_of(fields):
    return NCSNpp(**beside.tupled(fields))


def compare(file, tag, module, params, config):
    """All arrays of a file whose names begin with `tag`, an SDE."""
    with np.load(FOLDER / file) as arrays:
        found = {k.removeprefix(tag): v for k, v in arrays.items() if k.startswith(tag)}
    x = found["x"][:, 0]
    raw = at_times(module, params, x, found["labels"])
    if "model_output" in found:
        check("score_sde", file, f"{tag}model_output", raw, found["model_output"][:, 0])
    score_of(file, f"{tag}score", module, params, config, x, found["t"], found["score"][:, 0])
    mixed = found["t_mixed"], found["score_mixed"]
    score_of(file, f"{tag}score_mixed", module, params, config, found["x_mixed"], *mixed)
    expected_std = std_of(config, found["t"])[1]
    # The published float32 values are off at small times.
    np.testing.assert_allclose(found["std"], expected_std, rtol=5e-4 if "vp" in tag else 2e-6)


def std_of(config, t):
    """Mean's factor and noise of a process at times t, float64."""
    sde, model, t = config["training"]["sde"], config["model"], np.asarray(t, np.float64)
    if sde == "vesde":
        low, high = model["sigma_min"], model["sigma_max"]
        return np.ones_like(t), low * (high / low) ** t
    low, high = model["beta_min"], model["beta_max"]
    log = -t * t * (high - low) / 2 - t * low
    std = -np.expm1(log)
    return np.exp(log / 2), std if sde == "subvpsde" else np.sqrt(std)


def score_of(file, name, module, params, config, x, t, expected):
    """The score, by way of the adapter's tables at our level of the same noise."""
    form = score_sde.path_of(config)
    mean, std = std_of(config, t)
    low, high = form["data"]
    sigma = std / mean / ((high - low) / 2)
    tables = paths.tables(paths.Path(**form), 1 / (1 + sigma**2))
    p, q, o, k, d, time = (column.reshape(-1, 1, 1, 1) for column in tables)
    out = at_times(module, params, x, time.ravel().astype(np.float32))
    y = (nhwc(x) - d) / k
    score = -(p * y + o + q * out) / std.reshape(-1, 1, 1, 1)
    check("score_sde", file, name, score.astype(np.float32), expected)


@pytest.fixture(scope="module")
def opened():
    return {name: score_sde.read(FOLDER / f"{name}.pth") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_files(name, opened, compile_quickly):
    arch, fields, form, params = opened[name][:4]
    assert arch == "NCSNpp"
    json.dumps((fields, form))
    with np.load(FOLDER / f"{name}.npz") as arrays:
        tags = {re.match("[a-z]*sde_", key)[0] for key in arrays}
        mixed = {key: arrays[key] for key in arrays if "mixed" in key}
    config = read_json(FOLDER / f"{name}.config.json")
    for tag in sorted(tags):
        config["training"]["sde"] = tag.rstrip("_")
        compare(f"{name}.npz", tag, module_of(fields), params, config)
    # The weights that are not averaged are others: they give the numbers of "raw_weights".
    raw = pickle_reader.load(
        FOLDER / f"{name}.pth", plain_objects.NUMPY_SCALARS, lambda content: content["model"]
    )
    raw = {k.removeprefix("module."): v for k, v in raw.items() if not k.endswith("sigmas")}
    side = config["data"]["image_size"]
    raw = from_weights(module_of(fields), raw, jnp.zeros((1, side, side, fields["out_channels"])),
                       jnp.ones(1))  # fmt: skip
    config["training"]["sde"] = (tag := next(k for k in mixed if "raw" in k).split("_")[0])
    x, t, expected = (
        mixed[f"{tag}_{array}_mixed{end}"]
        for array, end in (("x", ""), ("t", ""), ("score", "_of_raw_weights"))
    )
    score_of(f"{name}.npz", f"{tag}_score_mixed", module_of(fields), raw, config, x, t, expected)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_configuration_the_published_pairs_are_taken(name, opened, tmp_path, caplog):
    """The vectors' networks are of the published pairs, so that nothing differs."""
    shutil.copy(FOLDER / f"{name}.pth", tmp_path)
    bare = score_sde.read(tmp_path / f"{name}.pth")
    assert "no " + name + ".config.json" in caplog.text
    assert ("not a sub-VP one, for granted" in caplog.text) == name.startswith("ddpmpp")
    assert module_of(bare.fields) == module_of(opened[name].fields)
    whole, found = opened[name].path, bare.path
    ends = [end for end in ("sigma_min", "sigma_max") if end in whole]  # float32 in the weights
    assert all(found.pop(end) == pytest.approx(whole[end]) for end in ends)
    assert found == {key: value for key, value in whole.items() if key not in ends}


@pytest.mark.parametrize("name", RECIPE)
@pytest.mark.slow
def test_recipes(name, compile_quickly):
    entry = RECIPE[name]
    config, where = entry["config"], FOLDER / "recipe.json"
    fields = score_sde.fields_of(config, len(config["model"]["ch_mult"]), where)
    module = module_of(fields)
    side = config["data"]["image_size"]
    inputs = (jnp.zeros((1, side, side, fields["out_channels"])), jnp.ones(1))
    shapes = shapes_of(module, *inputs)
    whole = {**shapes, "sigmas": (config["model"]["num_scales"],)}
    assert (len(whole), keys_sha256(whole)) == (entry["keys"], entry["keys_sha256"])

    def frequencies(key, n):
        return 16 * n if key == "all_modules.0.W" else None

    state = recipe_weights(shapes, entry["weights_seed"], frequencies)
    # The names and shapes alone tell the same.
    found = score_sde.infer(state)
    beside.check_same(fields, found, where)
    assert set(found) <= set(fields) | {"progressive_combine"}
    tag = f"{name}_{config['training']['sde']}_"
    params = from_weights(module, state, *inputs)
    compare("recipe.npz", tag, module, params, config)


@pytest.mark.parametrize("name", read_json(FOLDER / "full_size.json"))
def test_full_size_trees(name):
    full = FULL[name]
    ve = name.startswith("ve/")
    model = {**next(iter(RECIPE.values()))["config"]["model"]}
    model |= {"fir": ve, "progressive": "none", "progressive_input": "none"}
    model |= {"embedding_type": "fourier" if ve else "positional", "attn_resolutions": [16]}
    model |= {"scale_by_sigma": ve} | {k: v for k, v in full.items() if k != "size"}
    config = {"model": model, "data": {"image_size": full["size"], "centered": not ve}}
    module = module_of(score_sde.fields_of(config, len(model["ch_mult"]), FOLDER))
    shapes = shapes_of(module, jnp.zeros((1, full["size"], full["size"], 3)), jnp.ones(1))
    shapes["sigmas"] = (model["num_scales"],)
    expected = read_json(FOLDER / "full_size.json")[name]
    assert len(shapes) == expected["keys"]
    prefixed = {f"module.{key}": shape for key, shape in shapes.items()}
    assert expected["keys_sha256"] in (keys_sha256(shapes), keys_sha256(prefixed))


def test_odd_filters_double_as_published():
    """Zeros between the pixels, a border of two before them and of none behind."""
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1).repeat(4, 1)
    module = NCSNpp(fir=True, fir_kernel=(1, 2, 3))
    row = np.asarray(module._doubled(jnp.asarray(x)))[0, 3, :, 0]
    spread = np.zeros(10)
    spread[2:10:2] = x[0, 0, :, 0]  # two zeros before, and one behind every pixel
    taps = 2 * np.array([1, 2, 3]) / 6
    expected = [spread[n : n + 3] @ taps[::-1] for n in range(8)]
    assert row / row.max() == pytest.approx(np.array(expected) / max(expected))


def test_cat_is_told_by_the_shapes():
    fields = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": ()}
    fields |= {"progressive_input": "input_skip", "progressive_combine": "cat"}
    shapes = shapes_of(NCSNpp(**fields), jnp.zeros((1, 8, 8, 3)), jnp.ones(1))
    found = score_sde.infer({key: np.broadcast_to(0, shape) for key, shape in shapes.items()})
    assert {key: beside.tupled(found)[key] for key in fields} == fields


def test_positions_with_a_residual_pyramid_need_a_configuration(tmp_path):
    """They are published with VP, sub-VP and VE of discrete levels (cifar10_ncsnpp)."""
    fields = {"channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_factors": ()}
    fields |= {"progressive_input": "residual", "fir": True, "embedding": "positional"}
    module = NCSNpp(**fields, progressive="none", scale_by_sigma=False)
    state = recipe_weights(shapes_of(module, jnp.zeros((1, 8, 8, 3)), jnp.ones(1)), 1)
    content = {"model": state, "ema": {"shadow_params": list(state.values())}}
    save(tmp_path / "w.pth", content)
    message = r"w\.pth does not say its process: .* write .* into w\.config\.json beside it"
    with pytest.raises(ValueError, match=message) as error:
        score_sde.read(tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    model = {**next(iter(RECIPE.values()))["config"]["model"]}
    model |= {"nf": 8, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
    model |= {"progressive_input": "residual", "progressive": "none", "fir": True}
    model |= {"embedding_type": "positional", "scale_by_sigma": False}
    config = {"model": model, "data": {"image_size": 8, "centered": True}}
    opened = score_sde.read(tmp_path / "w.pth", {**config, "training": {"sde": "subvpsde"}})
    assert opened.path["state"] == "subvp"


def changed(name, tmp_path, change):
    """The file `name` with its weights changed, and its configuration."""
    content = pickle_reader.load(FOLDER / f"{name}.pth", plain_objects.NUMPY_SCALARS)
    content = {key: content[key] for key in ("model", "ema")}
    content["ema"] = {"shadow_params": content["ema"]["shadow_params"]}
    config = read_json(FOLDER / f"{name}.config.json")
    change(content, config)
    save(tmp_path / "c.pth", content)
    (tmp_path / "c.config.json").write_text(json.dumps(config))
    return tmp_path / "c.pth"


def no_average(content, config):
    del content["ema"]


def fewer(content, config):
    content["ema"]["shadow_params"].pop()


def swapped(content, config):
    shadow = content["ema"]["shadow_params"]
    shadow[:2] = shadow[1::-1]


def damaged(content, config):
    content["ema"]["shadow_params"][0] = content["ema"]["shadow_params"][0] * np.nan


def deeper(content, config):
    config["model"]["num_res_blocks"] = 3


def other_kind(content, config):
    config["model"]["resblock_type"] = "ddpm"


def unknown(content, config):
    config["model"]["squeeze"] = 2


def residual_output(content, config):
    config["model"]["progressive"] = "residual"


def not_continuous(content, config):
    config["training"]["continuous"] = False


def other_levels(content, config):
    config["model"]["sigma_max"] = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_average, "has no averaged weights"),
        (fewer, r"has \d+ averaged weights for \d+ parameters"),
        (swapped, r"other shapes than its parameters \(all_modules"),
        (damaged, "NaN or infinite"),
        (deeper, r"contradicts its weights: num_res_blocks is 3, in the weights \d"),
        (other_kind, "resblock_type"),
        (unknown, "squeeze"),
        (residual_output, "progressive is residual"),
        (not_continuous, "only continuous VE networks"),
        (other_levels, "sigma_max 7, the weights"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refusals(tmp_path, change, message):
    name = next(n for n in NAMES if read_json(FOLDER / f"{n}.config.json")["training"]["sde"]
                == "vesde")  # fmt: skip
    path = changed(name, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        score_sde.read(path)
    assert "c." in str(error.value)
    assert "\n" not in str(error.value)


def test_scalars_of_both_numpys_and_nothing_else(tmp_path):
    def scalar(module, code=b"f8", data=b"V" + b"\\u0000" * 7 + b"?\n"):
        number = b"cnumpy\ndtype\n(V" + code + b"\nI00\nI01\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
        coded = b"c_codecs\nencode\n(" + data + b"Vlatin1\ntR"
        return b"c" + module + b"\nscalar\n(" + number + coded + b"tR."

    def write(content):
        with zipfile.ZipFile(tmp_path / "s.pth", "w") as archive:
            archive.writestr("w/data.pkl", content)
        return pickle_reader.load(tmp_path / "s.pth", plain_objects.NUMPY_SCALARS)

    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        assert write(scalar(module)) == np.frombuffer(b"\0" * 7 + b"?")[0]
    for bad in (scalar(b"numpy._core.multiarray", b"O8"), scalar(b"numpy._core.multiarray", b"f4"),
                scalar(b"numpy")):  # fmt: skip
        with pytest.raises(ValueError, match=r"s\.pth"):
            write(bad)
