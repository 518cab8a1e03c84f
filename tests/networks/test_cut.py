"""CUT's networks and losses against the published code's numbers (tests/golden/cut)."""

import json

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdsde
from cdsde.diffusion import losses
from cdsde.networks import CUTGenerator, PatchDiscriminator, PatchSampler, cut
from cdsde.weights.torch import convert

TOLERANCE = 3e-5  # of the largest value, as issue E has it


@pytest.fixture(scope="module")
def vectors(golden):
    return golden / "cut"


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


def assert_close(got, expected, tolerance=TOLERANCE):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "blocks", "channels"),
    [
        ("resnet_6blocks", 6, 8),
        pytest.param("resnet_9blocks", 9, 8, marks=pytest.mark.slow),
        pytest.param("resnet_9blocks_xavier", 9, 4, marks=pytest.mark.slow),
    ],
)
def test_generator(vectors, name, blocks, channels):
    path = vectors / "generator" / f"{name}.pt"
    apply, params = cdsde.load_torch(path, "cut_generator")
    assert apply.__self__ == CUTGenerator(channels=channels, num_blocks=blocks)
    with np.load(vectors / "generator" / f"{name}.npz") as v:
        layers = (0, 4, 8, 12, 16)
        image, features = jax.jit(lambda p, x: apply(p, x, layers))(params, nhwc(v["input"]))
        assert_close(image, nhwc(v["output"]))
        for layer, feature in zip(layers, features, strict=True):
            assert_close(feature, nhwc(v[f"feat_{layer}"]))
        encoded = apply(params, nhwc(v["input"]), layers, encode_only=True)
        for a, b in zip(encoded, features, strict=True):
            assert_close(a, b)
    assert_exported(path, "cut_generator", params)


def assert_exported(path, kind, params):
    """What is written is what was read, blur kernels included, for the published code's reader."""
    written = convert.to_state_dict(params, kind)
    original = convert.read_state_dict(path, plain=True)
    assert original.keys() == written.keys()
    for key, value in written.items():
        np.testing.assert_array_equal(value, original[key], err_msg=key)


def test_blurs(vectors):
    with np.load(vectors / "generator" / "blur.npz") as v:
        for name in ("even", "odd"):
            x = nhwc(v[f"x_{name}"])
            assert_close(cut.blur_down(x), nhwc(v[f"down_{name}"]), 1e-6)
            assert_close(cut.blur_up(x), nhwc(v[f"up_{name}"]), 1e-6)


@pytest.mark.parametrize(("name", "channels"), [("basic", 8), ("basic_xavier", 4)])
def test_discriminator(vectors, name, channels):
    path = vectors / "discriminator" / f"{name}.pt"
    apply, params = cdsde.load_torch(path, "cut_discriminator")
    assert_exported(path, "cut_discriminator", params)
    assert apply.__self__ == PatchDiscriminator(channels=channels)
    with np.load(vectors / "discriminator" / f"{name}.npz") as v:
        assert_close(jax.jit(apply)(params, nhwc(v["input"])), nhwc(v["output"]))


def test_patch_sampler(vectors):
    path = vectors / "patchsample" / "mlp_sample.pt"
    apply, params = cdsde.load_torch(path, "cut_patch_sampler")
    assert_exported(path, "cut_patch_sampler", params)
    with np.load(vectors / "patchsample" / "mlp_sample.npz") as v:
        maps = [nhwc(v[f"feat_{n}"]) for n in range(3)]
        ids = [v[f"patch_ids_{n}"] for n in range(3)]
        for name, found in (
            ("out_mlp", apply(params, maps, ids)),
            ("out_sample", PatchSampler(use_mlp=False).apply({}, maps, ids)),
        ):
            for n, x in enumerate(found):
                assert x.shape[:2] == (2, 20)
                assert_close(x.reshape(40, -1), v[f"{name}_{n}"])


def test_unit_vectors_are_the_published_ones_down_to_zero(vectors):
    with np.load(vectors / "patchsample" / "l2norm.npz") as v:
        assert_close(cut.unit_vectors(jnp.asarray(v["l2_in"])), v["l2_out"], 1e-6)
    slope = jax.grad(lambda x: cut.unit_vectors(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_patch_nce(vectors, batch):
    with np.load(vectors / "patchnce.npz") as v:
        q, k = (v[f"{name}_b{batch}"].reshape(batch, 32, 16) for name in "qk")

        def each(q, k):
            return losses.patch_nce(q, k, 0.07)

        suffix = f"b{batch}_own"
        np.testing.assert_allclose(each(q, k).ravel(), v[f"loss_{suffix}"], rtol=1e-5, atol=1e-6)
        for_q, for_k = jax.grad(lambda q, k: each(q, k).mean(), (0, 1))(q, k)
        assert_close(for_q.reshape(-1, 16), v[f"grad_q_{suffix}"], 1e-4)
        assert not for_k.any()


@pytest.mark.parametrize("mode", ["lsgan", "nonsaturating"])
def test_gan_losses(vectors, mode):
    with np.load(vectors / "ganloss.npz") as v:
        logits = nhwc(v["logits"])
        for name in ("real", "fake"):
            value = losses.gan(logits, name == "real", mode)
            expected = v[f"{mode}_{name}"]
            np.testing.assert_allclose(value if expected.ndim else value.mean(), expected, 1e-5)
            slope = jax.grad(lambda x, n=name: losses.gan(x, n == "real", mode).mean())(logits)
            assert_close(slope, nhwc(v[f"grad_{mode}_{name}"]), 1e-4)
    with pytest.raises(ValueError, match="unknown GAN loss 'hinge'; choose lsgan"):
        losses.gan(logits, True, "hinge")


def test_full_size_names_and_shapes(vectors):
    full = json.loads((vectors / "full_size.json").read_text())
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    key = jax.random.key(0)
    layers = (0, 4, 8, 12, 16)
    generator = CUTGenerator()
    params = jax.eval_shape(generator.init, key, x)
    maps = jax.eval_shape(lambda p, x: generator.apply(p, x, layers)[1], params, x)
    ids = [jax.ShapeDtypeStruct((256,), jnp.int32)] * 5
    trees = {
        "cut_generator": (params, "G", 11_378_179),
        "cut_discriminator": (jax.eval_shape(PatchDiscriminator().init, key, x), "D", 2_764_737),
        "cut_patch_sampler": (
            jax.eval_shape(PatchSampler().init, key, maps, ids), "F", 560_384
        ),
    }  # fmt: skip
    for kind, (tree, letter, count) in trees.items():
        shapes = helpers.published_shapes(tree, kind)
        assert sum(np.prod(s) for s in shapes.values()) == count
        listed = full[letter]["state_dict"].items()
        assert shapes == {k: tuple(v["shape"]) for k, v in listed if v["kind"] == "parameter"}


@pytest.mark.slow
def test_published_initialisation():
    params = jax.jit(CUTGenerator(num_blocks=1).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))[
        "params"
    ]
    kernel = params["model_12"]["conv_block_1"]["kernel"]
    assert kernel.std() == pytest.approx(0.02 * np.sqrt(2 / (2 * 256 * 9)), rel=0.02)
    assert not params["model_1"]["bias"].any()


@pytest.mark.slow
def test_wider_groups_keep_lightness():
    """To instance norm a grey and a black square on white are the same drawing."""
    shade = jnp.array([0.3, -1.0])[:, None, None, None]
    squares = jnp.ones((2, 16, 16, 3)).at[:, 4:12, 4:12].set(shade)

    def difference(module):
        params = jax.jit(module.init)(jax.random.key(0), squares)
        params = jax.tree.map(lambda x: 50 * x, params)  # far above the norm's epsilon, as trained
        (features,) = module.apply(params, squares, (8,), encode_only=True)
        return jnp.abs(features[0] - features[1]).max() / features.std()

    assert difference(CUTGenerator(8, 1)) < 0.01
    assert difference(CUTGenerator(8, 1, group_channels=8)) > 0.3


def test_sides_that_cannot_be_halved_twice():
    with pytest.raises(ValueError, match="sides must be multiples of 4, not 62x64"):
        CUTGenerator(8, 6).init(jax.random.key(0), jnp.zeros((1, 62, 64, 3)))
