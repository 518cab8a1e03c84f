"""The networks give the numbers of the published PyTorch code (tests/golden/egsde), and behave."""

import functools
import json
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_helpers import error, noise, quick_jit

from cdsde.networks import ADMEncoder, ADMUNet, DDPMUNet, blocks
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"


pytestmark = pytest.mark.usefixtures("exact_products")


def golden(name):
    """The arrays of a file, images and maps as NHWC."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: np.moveaxis(v, -3, -1) if v.ndim >= 4 else v for k, v in arrays.items()}


@functools.cache
def published(name, kind, **arch):
    return convert.load_torch(GOLDEN / f"{name}.safetensors", kind, **arch)


def recipe_weights(shapes, seed):
    """Weights of a network that has no file, as golden/egsde/recipe.json prescribes them."""
    state_dict = {}
    for j, key in enumerate(sorted(shapes)):
        n = noise(seed, j, shapes[key])
        if n.ndim >= 2:
            state_dict[key] = n / np.float32(np.sqrt(np.prod(n.shape[1:])))
        else:
            state_dict[key] = np.float32(key.endswith(".weight")) + np.float32(0.1) * n
    return state_dict


def test_time_embeddings():
    for name, embed in (
        ("adm_unet", blocks.adm_time_embedding),
        ("ddpm_unet", blocks.ddpm_time_embedding),
    ):
        arrays = golden(name)
        for width in (32, 128):
            expected = arrays[f"time_embedding_dim{width}"]
            assert error(jax.jit(embed, static_argnums=1)(arrays["t"], width), expected) < 5e-6


@pytest.mark.parametrize(
    ("name", "kind", "arch", "x", "out"),
    [
        ("adm_unet", "adm", {"num_head_channels": 16}, "x_small", "out_small"),
        ("ddpm_unet", "ddpm", {"image_size": 32}, "x", "out"),
    ],
)
def test_unet_parity(name, kind, arch, x, out):
    arrays = golden(name)
    apply, params = published(name, kind, **arch)
    # One program for all: the five indices make a batch, and so do the two of t_mixed.
    first = np.repeat(arrays[x][:1], 5, axis=0)
    batch = np.concatenate([first, arrays[x]])
    result = jax.jit(apply)(params, batch, np.concatenate([arrays["t"], arrays["t_mixed"]]))
    for k in range(5):
        assert error(result[k : k + 1], arrays[out][k]) < 3e-5, arrays["t"][k]
    assert error(result[5:], arrays[f"{out}_mixed"]) < 3e-5


def test_adm_parity_at_another_size():
    arrays = golden("adm_unet")
    apply, params = published("adm_unet", "adm", num_head_channels=16)
    result = quick_jit(apply)(params, arrays["x_large"], arrays["t_large"][0])
    assert error(result, arrays["out_large"]) < 3e-5


def test_encoder_parity_with_gradients():
    arrays = golden("dse")
    apply, params = published("dse", "adm_encoder", num_head_channels=16)
    # Five indices for the values, then t_mixed twice: once for each gradient.
    x = np.concatenate([arrays["x"]] * 7)
    t = np.concatenate([np.repeat(arrays["t_logits"], 2), arrays["t_mixed"], arrays["t_mixed"]])

    @jax.jit
    def run(params, x):
        (logits, features), pullback = jax.vjp(lambda x: apply(params, x, t), x)
        of_logits = jnp.zeros_like(logits).at[10:12].set(arrays["cotangent_logits"])
        of_features = jnp.zeros_like(features).at[12:].set(arrays["cotangent_features"])
        return logits, features, pullback((of_logits, of_features))[0]

    logits, features, gradient = run(params, x)
    for k in range(5):
        assert error(logits[2 * k : 2 * k + 2], arrays["logits"][k]) < 1e-5
    assert error(logits[10:12], arrays["logits_mixed"]) < 1e-5
    for k, index in enumerate(arrays["t_features"]):
        at = 2 * list(arrays["t_logits"]).index(index)
        assert error(features[at : at + 2], arrays["features"][k]) < 1e-5
    assert error(features[10:12], arrays["features_mixed"]) < 1e-5
    assert error(gradient[10:12], arrays["grad_logits_mixed"]) < 5e-5
    assert error(gradient[12:], arrays["grad_features_mixed"]) < 5e-5
    # Images do not influence each other.
    assert not np.any(gradient[:10])


def test_encoder_without_head():
    arrays = golden("dse")
    apply, params = published("dse", "adm_encoder", num_head_channels=16)
    features_only = quick_jit(functools.partial(apply, head=False))
    logits, features = features_only(params, arrays["x"], arrays["t_mixed"])
    assert logits is None
    assert error(features, arrays["features_mixed"]) < 1e-5


RECIPE = json.loads((GOLDEN / "recipe.json").read_text())
MULTS = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}  # of the published factories


def factors(config, resolutions):
    return tuple(config["image_size"] // int(r) for r in resolutions.split(","))


def adm_from_config(config):
    mult = config["channel_mult"]
    mult = tuple(map(int, mult.split(","))) if mult else MULTS[config["image_size"]]
    return ADMUNet(
        channels=config["num_channels"],
        channel_mult=mult,
        num_res_blocks=config["num_res_blocks"],
        attention_factors=factors(config, config["attention_resolutions"]),
        num_heads=config["num_heads"],
        num_head_channels=config["num_head_channels"],
        use_scale_shift_norm=config["use_scale_shift_norm"],
        resblock_updown=config.get("resblock_updown", True),
        new_attention_order=config["use_new_attention_order"],
        out_channels=6 if config["learn_sigma"] else 3,
    )


def encoder_from_config(config):
    return ADMEncoder(
        channels=config["classifier_width"],
        channel_mult=MULTS[config["image_size"]],
        num_res_blocks=config["classifier_depth"],
        attention_factors=factors(config, config["classifier_attention_resolutions"]),
        use_scale_shift_norm=config["classifier_use_scale_shift_norm"],
        resblock_updown=config["classifier_resblock_updown"],
        pool=config["classifier_pool"],
        image_size=config["image_size"],
        out_channels=config["num_class"],
    )


def ddpm_from_config(config):
    return DDPMUNet(
        channels=config["ch"],
        channel_mult=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=tuple(config["attn_resolutions"]),
        image_size=config["image_size"],
        resamp_with_conv=config["resamp_with_conv"],
        out_channels=config["out_ch"],
    )


NETWORKS = {
    "adm": ("adm", adm_from_config),
    "dse": ("adm_encoder", encoder_from_config),
    "ddpm": ("ddpm", ddpm_from_config),
}


def shapes_of_kind(net, kind, side):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, 0)
    return helpers.published_shapes(shapes, kind)


def from_recipe(case):
    """Network and weights of a recipe; the architecture is inferred where shapes tell it."""
    kind, build = NETWORKS[case["kind"]]
    config = case["config"]
    net = build(config)
    shapes = shapes_of_kind(net, kind, config["image_size"])
    if "num_parameters" in case:
        assert sum(np.prod(s) for s in shapes.values()) == case["num_parameters"]
    untold = ("num_heads", "num_head_channels") if kind == "adm" else ()
    untold = {k: config[k] for k in untold}
    return convert.from_state_dict(recipe_weights(shapes, case["weights_seed"]), kind, **untold)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unet_flags(number):
    case = RECIPE["flag_cases"][number]
    arrays = golden("recipe")
    apply, params = from_recipe(case)
    side = case["config"]["image_size"]
    x = np.moveaxis(noise(118, 100 + number, (1, 3, side, side)), 1, -1)
    result = quick_jit(apply)(params, x, case["t"])
    stride = case["stride"]
    # The stride counts from 0 in rows and columns.
    assert error(result[:, ::stride, ::stride], arrays[f"case{number}_out"]) < 3e-5
    check_stats(result, arrays[f"case{number}_out_stats"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_encoder_flags(number):
    case = RECIPE["flag_cases"][number]
    arrays = golden("recipe")
    apply, params = from_recipe(case)
    side, stride = case["config"]["image_size"], case["stride"]
    x = np.moveaxis(noise(118, 100 + number, (1, 3, side, side)), 1, -1)

    @quick_jit
    def run(params, x):
        def total(x):
            logits, features = apply(params, x, case["t"])
            return logits.sum(), (logits, features)

        return jax.grad(total, has_aux=True)(x)

    gradient, (logits, features) = run(params, x)
    assert error(logits, arrays[f"case{number}_logits"]) < 1e-5
    assert error(features[..., ::stride], arrays[f"case{number}_features"]) < 1e-5
    check_stats(features, arrays[f"case{number}_features_stats"])
    expected = arrays[f"case{number}_grad_sum_logits"]
    assert error(gradient[:, ::stride, ::stride], expected) < 5e-5
    check_stats(gradient, arrays[f"case{number}_grad_stats"])


def check_stats(array, stats):
    array = np.asarray(array, np.float64)
    found = np.array([array.mean(), array.std(), np.abs(array).max()])
    np.testing.assert_allclose(found, stats, rtol=0, atol=3e-5 * stats[2])


FULL = json.loads((GOLDEN / "full_size.json").read_text())


@pytest.mark.parametrize(
    ("task", "name", "kind"),
    [
        ("cat2dog", "adm_unet", "adm"),
        ("cat2dog", "dse", "dse"),
        ("male2female", "ddpm_unet", "ddpm"),
    ],
)
def test_full_size_parameters(task, name, kind):
    entry = FULL[task][name]
    kind, build = NETWORKS[kind]
    net = build(entry["config"])
    shapes = shapes_of_kind(net, kind, 256)
    prefix = "module." if kind == "ddpm" else ""
    expected = {k.removeprefix(prefix): tuple(v) for k, v in entry["keys"].items()}
    assert shapes == expected
    assert sum(np.prod(s) for s in shapes.values()) == entry["num_parameters"]

    expected = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in expected.items()}
    fields = convert.infer_architecture(expected, kind)
    for field, value in fields.items():
        assert getattr(net, field) == value, field


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adm", "dse", "ddpm"])
def test_full_size_forward(name):
    case = {"kind": name, **RECIPE["full"][name]}
    apply, params = from_recipe(case)
    x = np.moveaxis(noise(118, 1, (1, 3, 256, 256)), 1, -1)
    result = jax.jit(apply)(params, x, RECIPE["full"]["inputs"]["t"])
    arrays = golden("recipe")
    if name == "dse":
        assert error(result[0], arrays["full_dse_logits"]) < 1e-5
    else:
        expected = arrays["full_adm_model_output" if name == "adm" else "full_ddpm_out"]
        assert error(result[:, 3::8, 5::8], expected) < 3e-5
