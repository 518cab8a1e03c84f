"""The contrast of score networks against domains whose densities are known."""

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import score_contrast

S, A = np.sqrt(0.3), np.sqrt(0.7)
Y = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype("f4")


def eps_of(mean):
    """The score network of N(mean, 1): perturbed, the domain has the variance 1."""
    return lambda y, i: S * (y - A * mean)


def test_it_guides_by_the_log_ratio_of_the_perturbed_domains():
    def log_ratio(y):  # log p_s - log p_t
        return jnp.sum((y - A * 0.5) ** 2 - (y + A * 0.2) ** 2) / 2

    eps_fn = score_contrast.contrasted(eps_of(0.5), eps_of(-0.2), 0.8)
    shift = eps_fn(Y, 300.0) - eps_of(0.5)(Y, 300.0)
    np.testing.assert_allclose(shift, 0.8 * S * jax.grad(log_ratio)(Y), atol=1e-5)


def test_where_the_weight_is_0_the_sources_network_does_not_run():
    def fails(y, i):
        jax.debug.callback(lambda: ran.append(i))
        return jnp.nan * y

    ran, target = [], eps_of(0.5)
    eps_fn = jax.jit(lambda y, weight: score_contrast.contrasted(target, fails, weight)(y, 300.0))
    np.testing.assert_allclose(eps_fn(Y, 0.0), target(Y, 300.0), atol=1e-6)
    jax.effects_barrier()
    assert not ran
    assert np.isnan(eps_fn(Y, 0.5)).all()
    jax.effects_barrier()
    assert ran


def test_weight_zero_and_equal_networks_change_nothing():
    target, other = eps_of(0.5), eps_of(-0.2)
    for eps_fn in (
        score_contrast.contrasted(target, other, 0.0),
        score_contrast.contrasted(target, target, 3.0),
    ):
        np.testing.assert_allclose(eps_fn(Y, 300.0), target(Y, 300.0), atol=1e-6)
