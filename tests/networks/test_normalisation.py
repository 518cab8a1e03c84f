"""Group normalisation: the gradient written by hand is the one that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde.networks import normalisation


@pytest.mark.parametrize("silu", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("batch", "rows", "positions", "channels", "groups"),
    [
        (3, 3, 20, 16, 4),
        pytest.param(2, 1, 64, 8, 8, marks=pytest.mark.slow),
        pytest.param(1, 1, 1024, 64, 32, marks=pytest.mark.slow),
        pytest.param(4, 4, 9, 6, 1, marks=pytest.mark.slow),
    ],
)
def test_gradients(batch, rows, positions, channels, groups, silu):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 + 2 * jax.random.normal(keys[0], (batch, positions, channels))
    gain, offset = (jax.random.normal(k, (rows, channels)) for k in keys[1:3])
    fixed = (groups, 1e-5, silu)
    y, pull = jax.vjp(lambda *a: normalisation.normalise(*a, *fixed), x, gain, offset)
    expected, pull_expected = jax.vjp(lambda *a: normalisation._plain(*a, *fixed), x, gain, offset)
    # n G and O may cancel: what is left is rounded as they are.
    rounding = np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=rounding)
    g = jax.random.normal(keys[3], x.shape)
    for ours, theirs in zip(pull(g), pull_expected(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("offset", [-200.0, 200.0])
def test_silu_far_from_0_has_finite_gradients(offset):
    x = jax.random.normal(jax.random.key(0), (1, 8, 4))
    args = (jnp.ones((1, 4)), jnp.full((1, 4), offset), 2, 1e-5, True)
    y, pull = jax.vjp(lambda x: normalisation.normalise(x, *args), x)
    assert (np.abs(y) < 1e-6).all() if offset < 0 else (np.abs(y - offset) < 5).all()
    assert np.isfinite(y).all() and np.isfinite(pull(jnp.ones_like(y))[0]).all()
    plain = jax.grad(lambda x: normalisation._plain(x, *args).sum())(x)
    assert np.isfinite(plain).all()


def test_low_precision_keeps_its_type():
    x = jnp.arange(32, dtype=jnp.bfloat16).reshape(1, 4, 8)
    one, zero = jnp.ones((1, 8)), jnp.zeros((1, 8))
    y, pull = jax.vjp(lambda x: normalisation.normalise(x, one, zero, 2, 1e-5, True), x)
    assert y.dtype == jnp.float32
    assert pull(y)[0].dtype == jnp.bfloat16
