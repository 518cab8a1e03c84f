"""The networks give the numbers of the published PyTorch code (tests/golden/egsde), and behave."""

import functools
import json
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cdsde.networks import ADMEncoder, ADMUNet, DDPMUNet, blocks
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
SMALL_ADM = {**SMALL, "attention_factors": (2,), "num_head_channels": 16}
SMALL_DDPM = {**SMALL, "attention_resolutions": (8,), "image_size": 16}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("float32"):
        yield


# Without the optimiser of the code generator: half the compile time, the same arithmetic.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def golden(name):
    """The arrays of a file, images and maps as NHWC."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: np.moveaxis(v, -3, -1) if v.ndim >= 4 else v for k, v in arrays.items()}


def error(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == jnp.float32
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@functools.cache
def published(name, kind, **arch):
    return convert.load_torch(GOLDEN / f"{name}.safetensors", kind, **arch)


def noise(seed, index, shape):
    generator = np.random.Generator(np.random.PCG64(seed * 100000 + index))
    return generator.standard_normal(shape, dtype=np.float32)


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


def randomised(net, x, seed=0, **kwargs):
    """Parameters without the zeros of a fresh network, which would hide what stands before them."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, 0, **kwargs)
    leaves, tree = jax.tree.flatten(shapes)
    values = [0.1 * noise(seed, i, leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, values)


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


@pytest.mark.parametrize("number", [0, 1])
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


# Behaviour that no golden vector covers.

X = noise(5, 0, (2, 16, 16, 3))


def both(**changes):
    return {
        "adm": ADMUNet(**{**SMALL_ADM, **changes}),
        "ddpm": DDPMUNet(**{**SMALL_DDPM, **changes}),
    }


@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_start_of_a_new_network(name):
    net = both(dtype=jnp.bfloat16)[name]
    shapes = jax.eval_shape(net.init, jax.random.key(1), X, 0)["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))

    embed, closing = {
        "adm": ("time_embed_2", ("out_layers_3", "proj_out", "out_2")),
        "ddpm": ("temb_dense_1", ("conv2", "proj_out", "conv_out")),
    }[name]

    @quick_jit
    def start(key):
        flat = traverse_util.flatten_dict(net.init(key, X, 0)["params"])
        return flat[(embed, "kernel")], [v for k, v in flat.items() if k[-2] in closing]

    kernel, zeros = start(jax.random.key(1))
    assert len(zeros) == {"adm": 2 * (10 + 4 + 1), "ddpm": 2 * (8 + 4 + 1)}[name]
    assert not any(np.any(z) for z in zeros)
    # PyTorch's default: uniform within 1/sqrt(fan_in), here of 128 channels.
    assert 0.98 < np.abs(kernel).max() * 128**0.5 <= 1


@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_bfloat16_is_close(name):
    net, rounded = (both(channel_mult=(1,), dtype=d)[name] for d in (jnp.float32, jnp.bfloat16))
    params = randomised(net, X)
    exact = np.asarray(quick_jit(net.apply)(params, X, 500))
    assert 1e-4 < error(quick_jit(rounded.apply)(params, X, 500), exact) < 3e-2


@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_remat_changes_nothing(name):
    net, thrifty = (both(channel_mult=(1,), remat=remat)[name] for remat in (False, True))
    params = randomised(net, X)

    def gradient(net):
        return quick_jit(jax.value_and_grad(lambda x: jnp.sum(net.apply(params, x, 500) ** 2)))(X)

    (value, grad), (value_remat, grad_remat) = gradient(net), gradient(thrifty)
    assert np.isclose(value, value_remat, rtol=1e-6)
    assert error(grad_remat, np.asarray(grad)) < 1e-5
    assert "remat" in str(jax.make_jaxpr(thrifty.apply)(params, X, 500))


@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_dropout_acts_in_training_only(name):
    net, without = (both(channel_mult=(1,), dropout=rate)[name] for rate in (0.5, 0.0))
    params = randomised(net, X)
    programs = [str(jax.make_jaxpr(n.apply)(params, X, 500)) for n in (net, without)]
    assert programs[0] == programs[1]
    train = quick_jit(lambda key: net.apply(params, X, 500, train=True, rngs={"dropout": key}))
    one, two = train(jax.random.key(1)), train(jax.random.key(2))
    assert error(one, np.asarray(two)) > 1e-2


@pytest.mark.parametrize("conv_resample", [True, False])
def test_plain_resampling(conv_resample):
    net = ADMUNet(**SMALL_ADM, resblock_updown=False, conv_resample=conv_resample)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, 0)
    assert ("input_blocks_2_0_op" in shapes["params"]) == conv_resample
    assert ("output_blocks_1_2_conv" in shapes["params"]) == conv_resample


def test_class_labels():
    net = ADMUNet(**{**SMALL_ADM, "channel_mult": (1,)}, num_classes=4)
    params = randomised(net, X, y=jnp.array([0, 1]))
    apply = quick_jit(net.apply)
    same, other = (apply(params, X, 500, jnp.array([0, i])) for i in (1, 2))
    np.testing.assert_array_equal(same[0], other[0])
    assert np.abs(same[1] - other[1]).max() > 1e-3
    with pytest.raises(ValueError, match="num_classes=4: pass y exactly"):
        net.apply(params, X, 500)


def test_stride_two_convolution_pads_like_pytorch():
    torch = pytest.importorskip("torch")
    weight, bias = noise(1, 1, (3, 3, 3, 32)), noise(1, 2, (32,))

    class Module(blocks.nn.Module):
        @blocks.nn.compact
        def __call__(self, x):
            return blocks.conv(x, 32, stride=2, name="op")

    result = Module().apply({"params": {"op": {"kernel": weight, "bias": bias}}}, X)
    x, w = (
        torch.from_numpy(a.copy()) for a in (np.moveaxis(X, -1, 1), weight.transpose(3, 2, 0, 1))
    )
    expected = torch.nn.functional.conv2d(x, w, torch.from_numpy(bias), stride=2, padding=1)
    assert error(result, np.moveaxis(expected.numpy(), 1, -1)) < 1e-6


def test_order_of_heads():
    qkv = jnp.arange(2 * 3 * 4, dtype=jnp.float32)[None, None]  # 2 heads of 4 channels
    q, k, v = blocks.split_qkv(qkv, heads=2, new_order=False)
    assert [a[0, 0, 1, 0] for a in (q, k, v)] == [12, 16, 20]
    q, k, v = blocks.split_qkv(qkv, heads=2, new_order=True)
    assert [a[0, 0, 1, 0] for a in (q, k, v)] == [4, 12, 20]


def init(net, side=16, t=0):
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, side, side, 3)), t)


def test_errors():
    with pytest.raises(ValueError, match=r"in 'input_blocks_1_0/in_layers_0' has 48 channels"):
        init(ADMUNet(**{**SMALL_ADM, "channels": 48}))
    with pytest.raises(ValueError, match=r"divisible by 2 \(2 resolution levels\)"):
        init(ADMUNet(**SMALL_ADM), side=17)
    with pytest.raises(ValueError, match=r"t has shape \(3,\) for a batch of 2"):
        init(both()["ddpm"], t=jnp.zeros(3))
    with pytest.raises(ValueError, match="64 channels cannot be split with num_head_channels=24"):
        init(ADMUNet(**{**SMALL_ADM, "num_head_channels": 24}))
    with pytest.raises(ValueError, match="cannot be split with num_heads=5"):
        init(ADMUNet(**{**SMALL_ADM, "num_head_channels": -1, "num_heads": 5}))
    with pytest.raises(ValueError, match="built for 8x8 features and got 16x16"):
        init(ADMEncoder(**SMALL_ADM, image_size=16), side=32)
    with pytest.raises(ValueError, match="pool is 'max': choose 'attention', 'adaptive' or 'none'"):
        init(ADMEncoder(**SMALL_ADM, image_size=16, pool="max"))


# --- fewer groups for narrow networks ---


@pytest.mark.parametrize(("channels", "least", "groups"), [(64, 1, 32), (64, 4, 16), (256, 4, 32)])
def test_groups_have_at_least_so_many_channels(channels, least, groups):
    x = noise(5, 0, (2, 6, 6, channels)) + 3
    norm = blocks.GroupNorm(1e-5, group_channels=least)
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    grouped = x.reshape(2, 36, groups, -1).astype(np.float64)
    mean, var = (f(axis=(1, 3), keepdims=True) for f in (grouped.mean, grouped.var))
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_channels_that_do_not_divide_into_groups_are_told():
    with pytest.raises(ValueError, match="40 channels.*divisible by 32"):
        blocks.GroupNorm(1e-5).init(jax.random.key(0), jnp.zeros((1, 4, 4, 40)))
