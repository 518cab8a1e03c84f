"""Losses in closed form, alike on one device and many."""

import jax
import numpy as np
import pytest
from scipy import stats

from cdsde.diffusion import losses, schedules
from cdsde.runtime import mesh

nt_xent = jax.jit(losses.nt_xent)
alignment_uniformity = jax.jit(losses.alignment_uniformity)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# --- noise matching ---


def test_eps_matching_is_the_mean_square():
    prediction, eps = normal(0, 4, 3, 5, 2), normal(1, 4, 3, 5, 2)
    loss = losses.eps_matching(prediction, eps, np.full(4, 0.3, np.float32))
    assert loss == pytest.approx(np.mean((prediction - eps) ** 2), rel=1e-6)


# --- a learned variance ---


def bound_of(v, prediction, eps, x0, level):
    """Published: KL divergence of the posteriors, or likelihood of the 256 values; float64."""
    schedule = schedules.linear()
    ab = np.asarray(schedule.alpha_bar, np.float64)
    beta, before = np.asarray(schedule.beta, np.float64), np.append(1.0, ab[:-1])
    posterior = beta * (1 - before) / (1 - ab)
    posterior[0] = posterior[1]
    a, b = ab[level], beta[level]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
    log_variance = (v + 1) / 2 * np.log(b) + (1 - v) / 2 * np.log(posterior[level])
    mean = (x - b / np.sqrt(1 - a) * prediction) / np.sqrt(1 - b)
    if level == 0:
        std = np.exp(log_variance / 2)
        upper = np.where(x0 > 0.999, 1, stats.norm.cdf((x0 + 1 / 255 - mean) / std))
        lower = np.where(x0 < -0.999, 0, stats.norm.cdf((x0 - 1 / 255 - mean) / std))
        return -np.mean(np.log2(np.maximum(upper - lower, 1e-12)))
    truth = (x - b / np.sqrt(1 - a) * eps) / np.sqrt(1 - b)
    ratio = np.log(posterior[level]) - log_variance
    distance = (truth - mean) ** 2 * np.exp(-log_variance)
    return np.mean(-1 - ratio + np.exp(ratio) + distance) / 2 / np.log(2)


@pytest.mark.parametrize("level", [0, 1, 2, 30, 500, 999])
def test_variance_bound_is_the_published_one(level):
    v, x0 = np.tanh(normal(0, 2, 4, 4, 3)), np.clip(normal(1, 2, 4, 4, 3), -1, 1)
    eps = normal(2, 2, 4, 4, 3)
    prediction = eps + 0.3 * normal(3, 2, 4, 4, 3)
    ours = losses.variance_bound(v, prediction, eps, x0, np.full(2, level), schedules.linear())
    wanted = bound_of(*(np.float64(a) for a in (v, prediction, eps, x0)), level)
    assert ours == pytest.approx(wanted, rel=2e-4)


def test_variance_bound_teaches_the_variance_and_leaves_the_noise():
    v, eps, x0 = np.zeros((1, 4, 4, 3), np.float32), normal(2, 1, 4, 4, 3), normal(1, 1, 4, 4, 3)
    schedule, level = schedules.linear(), np.array([400])

    def bound(v, prediction):
        return losses.variance_bound(v, prediction, eps, x0, level, schedule)

    exact = jax.grad(bound, (0, 1))(v, eps)
    far = jax.grad(bound, (0, 1))(v, eps + 200)
    assert np.all(exact[0] > 0) and np.all(far[0] < 0), "the variance shrinks, and grows"
    assert not np.any(exact[1]) and not np.any(far[1])


# --- weights of noise matching ---


def test_eps_matching_weights():
    # Signal-to-noise ratios 1/4, 1, 4, 16 and squared errors 1, 4, 9, 16.
    alpha_bar = np.array([0.2, 0.5, 0.8, 16 / 17], np.float32)
    eps = normal(1, 4, 3, 5, 2)
    prediction = eps + np.arange(1, 5, dtype=np.float32)[:, None, None, None]
    cases = {
        None: [1, 4, 9, 16],
        5.0: [1, 4, 9, 16 * 5 / 16],
        1.0: [1, 4, 9 / 4, 16 / 16],
        0.5: [1, 4 / 2, 9 / 8, 16 / 32],
    }
    for clip, per_image in cases.items():
        loss = losses.eps_matching(prediction, eps, alpha_bar, snr_clip=clip)
        assert loss == pytest.approx(np.mean(per_image), rel=1e-5), clip


# --- classification ---


def test_cross_entropy():
    logits = np.log([[1, 1, 2], [6, 1, 1], [1, 8, 1]]).astype(np.float32)
    loss, accuracy = losses.cross_entropy(logits, np.array([2, 0, 0]))
    assert loss == pytest.approx(-np.log([2 / 4, 6 / 8, 1 / 10]).mean(), rel=1e-6)
    assert accuracy == pytest.approx(2 / 3)


# --- NT-Xent ---


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_nt_xent_of_perfect_pairs(tau):
    # Views alike, images orthogonal: each row has one cosine 1 and 2B - 2 cosines 0.
    b = 4
    z = 3.0 * np.eye(b, 6, dtype=np.float32)  # the length does not matter
    loss, accuracy = nt_xent(z, 0.5 * z, tau)
    expected = np.log1p((2 * b - 2) * np.exp(-1 / tau))
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert accuracy == 1


def test_nt_xent_of_views_that_say_nothing():
    # All equal: every one of the 2B - 1 others is as likely.
    z = np.ones((5, 3), np.float32)
    assert nt_xent(z, z, 0.2)[0] == pytest.approx(np.log(9), rel=1e-5)
    # All 2B orthogonal: likewise.
    z = np.eye(10, dtype=np.float32)
    assert nt_xent(z[:5], z[5:], 0.2)[0] == pytest.approx(np.log(9), rel=1e-5)


def test_nt_xent_of_crossed_pairs():
    # The second view of each is the first view of the other.
    z = np.eye(2, dtype=np.float32)
    loss, accuracy = nt_xent(z, z[::-1], 0.5)
    assert loss == pytest.approx(np.log(2 + np.exp(2)), rel=1e-5)
    assert accuracy == 0


def test_nt_xent_of_unlike_rows():
    # One pair, opposite: the positive is the only other view, so nothing is left to tell.
    first = np.array([[1, 0]], np.float32)
    assert nt_xent(first, -first, 0.3)[0] == pytest.approx(0, abs=1e-6)
    # Two pairs in the plane, at 0, 90 and 180, 270 degrees: each row has cosines 0, 0, -1.
    first = np.array([[1, 0], [-1, 0]], np.float32)
    second = np.array([[0, 1], [0, -1]], np.float32)
    loss, _ = nt_xent(first, second, 0.5)
    assert loss == pytest.approx(np.log(2 + np.exp(-2)), rel=1e-5)


def test_nt_xent_does_not_depend_on_order():
    first, second = normal(0, 8, 5), normal(1, 8, 5)
    expected = nt_xent(first, second, 0.3)
    order = np.random.default_rng(2).permutation(8)
    for views in ((first[order], second[order]), (second, first)):
        np.testing.assert_allclose(nt_xent(*views, 0.3), expected, rtol=1e-5)
    # Only the pairing does.
    assert abs(nt_xent(first, second[order], 0.3)[0] - expected[0]) > 0.05


def test_nt_xent_temperature():
    first = normal(0, 8, 5)
    second = first + 0.1 * normal(1, 8, 5)
    values = [float(nt_xent(first, second, tau)[0]) for tau in (0.05, 0.2, 0.5, 1, 1e4)]
    assert np.all(np.diff(values) > 0)  # good pairs: sharper is lower
    assert values[-1] == pytest.approx(np.log(15), rel=1e-3)  # in the limit, all alike
    gradient = jax.jit(jax.grad(lambda tau: losses.nt_xent(first, second, tau)[0]))(0.2)
    assert np.isfinite(gradient) and gradient > 0


@pytest.mark.parametrize("devices", [1, 8])
def test_nt_xent_is_of_the_global_batch(devices):
    first, second = normal(0, 16, 5), normal(1, 16, 5)
    expected = nt_xent(first, second, 0.3)[0]
    per_device = nt_xent(first[:2], second[:2], 0.3)[0]
    assert abs(expected - per_device) > 0.5
    over = mesh.make_mesh(jax.devices()[:devices])
    views = mesh.put_batch((first, second), over)
    assert len(views[0].sharding.device_set) == devices
    value_and_grad = jax.jit(jax.value_and_grad(lambda a, b: losses.nt_xent(a, b, 0.3)[0]))
    value, gradient = value_and_grad(*views)
    assert value == pytest.approx(float(expected), rel=1e-5)
    alone = value_and_grad(first, second)[1]
    assert np.abs(alone).max() > 1e-3
    np.testing.assert_allclose(gradient, alone, atol=1e-6)


def test_nt_xent_has_a_gradient_at_zero():
    z = normal(0, 3, 4)
    z[1] = 0
    gradient = jax.jit(jax.grad(lambda a: losses.nt_xent(a, normal(1, 3, 4), 0.3)[0]))(z)
    assert np.all(np.isfinite(gradient))


def test_alignment_and_uniformity():
    z = np.array([[1, 0], [-1, 0]], np.float32)
    # Perfect pairs: of each view's three others one at distance² 0 and two at 4.
    alignment, uniformity = alignment_uniformity(z, 2 * z)
    assert alignment == pytest.approx(0, abs=1e-6)
    assert uniformity == pytest.approx(np.log((1 + 2 * np.exp(-8)) / 3), rel=1e-5)
    # Pairs at right angles: distance² 2.
    alignment, _ = alignment_uniformity(z, z[:, ::-1])
    assert alignment == pytest.approx(2, rel=1e-6)
