"""Noise schedules and the conversions between the things that a network may predict."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde.diffusion import schedules

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
LINEAR = schedules.linear()
INDICES = np.array([0, 1, 30, 250, 499, 800, 998, 999])
SHAPE = (len(INDICES), 4, 5, 3)


@pytest.fixture(scope="module")
def pair():
    """A clean image in [-1, 1] and its noise for each of INDICES."""
    generator = np.random.default_rng(0)
    x0 = generator.uniform(-1, 1, SHAPE).astype(np.float32)
    return x0, generator.standard_normal(SHAPE, dtype=np.float32)


# --- schedules ---


def test_linear_tables_are_the_published_ones_bit_for_bit():
    with np.load(GOLDEN / "schedule.npz") as arrays:
        assert LINEAR.beta.dtype == LINEAR.alpha_bar.dtype == np.float32
        np.testing.assert_array_equal(LINEAR.beta, arrays["betas"])
        np.testing.assert_array_equal(LINEAR.alpha_bar, arrays["alphas_cumprod"])


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_tables(name):
    schedule = schedules.SCHEDULES[name](200)
    assert schedule.num_steps == 200
    assert schedule.beta.shape == schedule.alpha_bar.shape == (200,)
    assert np.all((schedule.beta > 0) & (schedule.beta < 1))
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    total = schedule.signal.astype(np.float64) ** 2 + schedule.noise.astype(np.float64) ** 2
    np.testing.assert_allclose(total, 1, atol=2e-7)
    for table in (schedule.signal, schedule.noise):
        assert table.dtype == np.float32


# --- the cosine schedule of Nichol and Dhariwal ---


@pytest.mark.parametrize("steps", [50, 1000])
def test_cosine_follows_the_squared_cosine(steps):
    schedule = schedules.cosine(steps)
    t = (np.arange(steps) + 1) / steps
    quarter_wave = (
        np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    np.testing.assert_allclose(schedule.alpha_bar[:-1], quarter_wave[:-1], atol=1e-6)
    # At t = 1 the cosine is 0; the clip leaves a signal that can still be divided by.
    assert schedule.beta[-1] == np.float32(0.999)
    assert schedule.beta[-2] < 0.999
    assert schedule.alpha_bar[-1] > 0


def test_cosine_destroys_the_signal_more_evenly():
    cosine = schedules.cosine()
    assert np.all(np.diff(cosine.beta) >= 0)
    # Their figure 5: near 1/2 in the middle, where the linear schedule is nearly all noise.
    assert cosine.alpha_bar[499] == pytest.approx(0.5, abs=0.02)
    assert LINEAR.alpha_bar[499] < 0.1
    # Their reason for the offset: sqrt(beta_0) just below a pixel's bin size, and not far below.
    assert 0.8 < np.sqrt(cosine.beta[0]) * 127.5 < 1
    assert schedules.cosine(offset=0.0).beta[0] < 0.1 * cosine.beta[0]


# --- conversions ---


def test_perturb_mixes_by_signal_and_noise(pair):
    x0, e = pair
    alpha_bar = LINEAR.alpha_bar[INDICES]
    zero = np.zeros_like(x0)
    for k, i in enumerate(INDICES):
        only_signal = schedules.perturb(x0, zero, alpha_bar)[k]
        only_noise = schedules.perturb(zero, e, alpha_bar)[k]
        np.testing.assert_allclose(only_signal, LINEAR.signal[i] * x0[k], rtol=1e-6)
        np.testing.assert_allclose(only_noise, LINEAR.noise[i] * e[k], rtol=1e-6)


def test_scalar_and_per_image_coefficients_agree(pair):
    x0, e = pair
    alpha_bar = LINEAR.alpha_bar[INDICES]
    functions = [
        schedules.perturb,
        schedules.eps_to_x0,
        schedules.x0_to_eps,
        schedules.v_to_eps,
    ]
    for function in functions:
        batch = function(x0, e, alpha_bar)
        assert batch.shape == SHAPE
        assert batch.dtype == jnp.float32
        for k in range(len(INDICES)):
            single = function(x0[k : k + 1], e[k : k + 1], alpha_bar[k])
            np.testing.assert_array_equal(batch[k : k + 1], single)


def test_conversions_find_what_made_the_state(pair):
    x0, e = pair
    alpha_bar = LINEAR.alpha_bar[INDICES]
    x = schedules.perturb(x0, e, alpha_bar)
    signal, noise = (schedules.expand(a[INDICES], x0) for a in (LINEAR.signal, LINEAR.noise))
    v = signal * e - noise * x0
    # Rounding of x is divided by the signal (6e-3 at 999) or the noise (1e-2 at 0).
    np.testing.assert_allclose(schedules.eps_to_x0(x, e, alpha_bar), x0, atol=1e-4)
    np.testing.assert_allclose(schedules.x0_to_eps(x, x0, alpha_bar), e, atol=1e-4)
    np.testing.assert_allclose(schedules.v_to_eps(x, v, alpha_bar), e, atol=1e-6)


def test_a_clean_image_and_its_noise_lead_to_each_other(pair):
    x, e = pair
    alpha_bar = LINEAR.alpha_bar[INDICES]
    x0 = schedules.eps_to_x0(x, e, alpha_bar)
    np.testing.assert_allclose(schedules.x0_to_eps(x, x0, alpha_bar), e, atol=5e-5)


def test_noise_is_the_scaled_gradient_of_the_log_density(pair):
    """score = -ε / √(1-ᾱ)."""
    x0, e = pair
    alpha_bar = LINEAR.alpha_bar[INDICES]

    def log_density(x):
        mean = schedules.perturb(x0, jnp.zeros_like(x), alpha_bar)
        return jnp.sum(-0.5 * (x - mean) ** 2 / schedules.expand(1 - alpha_bar, x))

    score = jax.grad(log_density)(schedules.perturb(x0, e, alpha_bar))
    largest = np.abs(score).max(axis=(1, 2, 3), keepdims=True)
    found = -e / schedules.expand(np.sqrt(1 - alpha_bar), e)
    np.testing.assert_allclose(found / largest, score / largest, atol=2e-5)


def test_gather_takes_a_traced_index():
    gather = jax.jit(lambda i: schedules.gather(LINEAR.alpha_bar, i))
    np.testing.assert_array_equal(gather(INDICES), LINEAR.alpha_bar[INDICES])
    assert gather(999) == LINEAR.alpha_bar[999]
