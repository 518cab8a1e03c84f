"""Behaviour of the U-Nets and the extractor that no golden vector covers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from network_helpers import SMALL_ADM, SMALL_DDPM, error, noise, quick_jit, randomised

from cdsde.networks import ADMEncoder, ADMUNet, DDPMUNet, blocks
from cdsde.weights import resolve

pytestmark = pytest.mark.usefixtures("exact_products")


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
@pytest.mark.slow
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


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 256, 128, 8)])
def test_resampling_and_its_gradients(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    parts = np.asarray(x).reshape(shape[0], shape[1] // 2, 2, shape[2] // 2, 2, shape[3])
    means = parts.mean(axis=(2, 4))
    repeated = means.repeat(2, axis=1).repeat(2, axis=2)
    for function, value, cotangent, gradient in [
        (blocks.downsample_mean, means, means, repeated / 4),
        (blocks.upsample_nearest, repeated, x, 4 * means),
    ]:
        y, pull = jax.vjp(function, x if function is blocks.downsample_mean else means)
        np.testing.assert_allclose(y, value, atol=1e-6)
        np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], gradient, atol=1e-6)


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


def test_fourier_features_show_faint_noise_on_paper(tiny):
    """On ±1 they are the noise times 2ⁿπ ; the image stays beside them."""
    paper = jnp.sign(X) + 1e-3 * X
    features = blocks.with_fourier_features(paper, (3,))
    np.testing.assert_array_equal(features[..., :3], paper)
    np.testing.assert_allclose(features[..., 3:6], 8e-3 * np.pi * X, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(features[..., 6:], np.cos(8 * np.pi * np.float64(paper)), atol=1e-4)
    assert blocks.with_fourier_features(X, ()).shape == X.shape
    config = tiny(score__fourier=(2, 4), score__patch_size=2)
    first = resolve.shapes(config, "score")["params"]["input_blocks_0_0"]["kernel"]
    assert first.shape[2] == 4 * 3 * (1 + 2 * 2)
