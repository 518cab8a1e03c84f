"""Convolutions: values and gradients are those that XLA derives, at every border and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cdsde.networks import convolution


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


# The kernel's gradient is a sum over blocks for the first three shapes, and XLA's own for the rest.
@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((1, 32, 64, 32), 40),
        pytest.param((2, 10, 10, 33), 32, marks=pytest.mark.slow),
        pytest.param((1, 16, 16, 32), 32, marks=pytest.mark.slow),
        ((2, 7, 6, 3), 5),
        ((1, 4, 3, 8), 7),  # the images are turned, not the kernel
        ((2, 3, 2, 14), 9),  # fewer positions than channels: one product, then shifts
        ((1, 9, 8, 27), 3),  # few channels come out, of the layer and of its gradient
        ((2, 8, 9, 3), 27),
        pytest.param((3, 32, 32, 32), 32, marks=pytest.mark.slow),
        pytest.param((1, 33, 32, 32), 32, marks=pytest.mark.slow),
        ((2, 16, 20, 64), 72),  # Winograd's form of the gradients, but for ∂x with borders of 0
        ((1, 32, 36, 64), 80),  # and of the values
        pytest.param((1, 32, 32, 128), 64, marks=pytest.mark.slow),
        ((1, 16, 18, 64), 64),  # no whole tiles
    ],
)
def test_gradients(border, shape, features):
    shape = (shape[0], *(side + 2 - 2 * border for side in shape[1:3]), shape[3])
    x, kernel = arrays(shape, (3, 3, shape[3], features))

    def derived(x, kernel):
        return convolution._convolve(x, kernel, border)

    y, pull = jax.vjp(lambda x, k: convolution.conv3x3(x, k, border), x, kernel)
    expected, pull_expected = jax.vjp(derived, x, kernel)
    size = y.shape[1:3]
    tiled = shape[3] >= 64 and size[1] % 4 == 0
    assert tiled == convolution._many_meet(kernel, size, convolution.GRADIENT)
    values_tiled = convolution._many_meet(kernel, size, convolution.FORWARD)
    assert values_tiled == (tiled and size[0] >= 32)
    if 9 * features > shape[3] and not values_tiled:
        np.testing.assert_array_equal(y, expected)
    else:
        close(y, expected, values_tiled)
    (g,) = arrays(y.shape)
    for ours, theirs in zip(pull(g), pull_expected(g), strict=True):
        close(ours, theirs, tiled)


def close(ours, theirs, tiled: bool):
    """Equal but for another order of up to 2048 products, or for what Winograd's form rounds."""
    atol = (2e-5 if tiled else 2e-6) * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_program_for_any_batch_rounds_alike(batch):
    """Which form is taken does not depend on the batch."""
    x, kernel = arrays((batch, 32, 32, 64), (3, 3, 64, 64))
    shape = jax.export.symbolic_shape("b, 32, 32, 64")
    exported = jax.export.export(jax.jit(convolution.conv3x3))(
        jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
    )
    np.testing.assert_array_equal(exported.call(x, kernel), jax.jit(convolution.conv3x3)(x, kernel))


def test_half_precision_is_not_tiled():
    """Winograd's sums lose two digits, of which bfloat16 has three."""
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays((1, 32, 32, 64), (3, 3, 64, 64)))
    y = convolution.conv3x3(x, kernel)
    np.testing.assert_array_equal(y, convolution._convolve(x, kernel, 1))


@pytest.mark.parametrize(
    ("size", "padding", "stride"),
    [
        (3, ((1, 1), (1, 1)), 1),
        (3, ((0, 0), (0, 0)), 1),
        (3, ((1, 1), (1, 1)), 2),
        (3, ((0, 1), (0, 1)), 1),
        (1, ((0, 0), (0, 0)), 1),
        (1, ((0, 0), (0, 0)), 2),
        (7, ((3, 3), (3, 3)), 1),
    ],
)
def test_the_layer_is_flax_s(size, padding, stride):
    (x,) = arrays((2, 8, 8, 4))
    plain = nn.Conv(6, (size, size), stride, padding, bias_init=nn.initializers.ones)
    ours = convolution.Conv(6, size, padding, stride)
    params = plain.init(jax.random.key(1), x)
    shapes = jax.eval_shape(ours.init, jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)

    def loss(module, params, x):
        return jnp.sum(jnp.sin(module.apply(params, x)))

    expected = jax.value_and_grad(loss, argnums=(1, 2))(plain, params, x)
    actual = jax.value_and_grad(loss, argnums=(1, 2))(ours, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), actual, expected)


def test_no_swapped_kernel_is_left_in_a_loop():
    """What the gradient in place is for: XLA's fast routine takes no other kernels."""
    x, kernel = arrays((1, 16, 16, 8), (3, 3, 8, 8))

    def loop(x, kernel):
        def body(_, y):
            return y - jax.grad(lambda y: jnp.sum(convolution.conv3x3(y, kernel) ** 2))(y)

        return jax.lax.fori_loop(0, 3, body, x)

    text = jax.jit(loop).lower(x, kernel).compile().as_text()
    assert "01io->b01f" in text and "01oi" not in text
