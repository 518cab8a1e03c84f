"""Attention: the gradient written by hand is the one that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde.networks import blocks


def plain(q, k, v):
    logits = jnp.einsum("bthc,bshc->bhts", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(logits, axis=-1), v)


@pytest.mark.parametrize("queries", [1, 9])
def test_values_and_gradients(queries):
    keys = jax.random.split(jax.random.key(0), 4)
    q = 3 * jax.random.normal(keys[0], (2, queries, 3, 8))
    k, v = (jax.random.normal(key, (2, 9, 3, 8)) for key in keys[1:3])
    y, pull = jax.vjp(blocks.attend, q, k, v)
    expected, pull_expected = jax.vjp(plain, q, k, v)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    g = jax.random.normal(keys[3], y.shape)
    for ours, theirs in zip(pull(g), pull_expected(g), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max())


def test_low_precision_keeps_its_type():
    x = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
    y, pull = jax.vjp(blocks.attend, x, x, x)
    assert y.dtype == jnp.bfloat16
    assert all(g.dtype == jnp.bfloat16 for g in pull(y))
