"""Random shifts of training images."""

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.train import augment

IMAGES = np.random.default_rng(5).standard_normal((6, 12, 12, 3), dtype=np.float32)


def shift(seed, images, amount):
    # Compiled anew in each call, so that it sees replaced draws.
    return jax.jit(lambda key, x: augment.shift(key, x, amount))(jax.random.key(seed), images)


def test_no_amount_no_change():
    assert augment.shift(jax.random.key(0), IMAGES, 0.0) is IMAGES


def test_a_tiny_amount_changes_little():
    np.testing.assert_allclose(shift(0, IMAGES, 1e-6), IMAGES, atol=1e-3)


def with_draws(monkeypatch, *rows):
    """The uniform draws of each image: shift of rows, shift of columns."""
    draws = jnp.array(rows, jnp.float32)

    def uniform(key, shape, minval, maxval):
        assert (shape, minval, maxval) == (draws.shape, -1.0, 1.0)
        return draws

    monkeypatch.setattr(augment.jax.random, "uniform", uniform)


def test_shift_by_whole_pixels(monkeypatch):
    # A quarter of the side, 3 pixels; a positive draw looks further down or right.
    with_draws(monkeypatch, (1, 0), (-1, 0), (0, 1), (0, -1 / 3))
    x = IMAGES[:4]
    moved = shift(0, x, 0.25)
    rows = np.arange(12)
    expected = [
        x[0][np.minimum(rows + 3, 11)],  # the border row is continued
        x[1][np.maximum(rows - 3, 0)],
        x[2][:, np.minimum(rows + 3, 11)],
        x[3][:, np.maximum(rows - 1, 0)],
    ]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_the_amount_is_a_share_of_each_side(monkeypatch):
    with_draws(monkeypatch, (1, 1))
    image = np.random.default_rng(6).standard_normal((1, 8, 20, 1), dtype=np.float32)
    moved = shift(0, image, 0.25)
    expected = image[:, np.minimum(np.arange(8) + 2, 7)][:, :, np.minimum(np.arange(20) + 5, 19)]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_amounts_stay_within_bounds_and_differ():
    # A ramp says where each pixel was taken from.
    ramp = np.broadcast_to(np.arange(32.0, dtype=np.float32)[:, None, None], (64, 32, 32, 1))
    moved = np.asarray(shift(3, ramp, 0.125))
    offset = (moved - ramp)[:, 16, 16, 0]
    assert np.all(np.abs(offset) <= 4)
    assert offset.min() < -3 and offset.max() > 3
    assert len(np.unique(offset)) == 64


def test_a_shift_is_a_function_of_its_key():
    one = shift(1, IMAGES, 0.2)
    np.testing.assert_array_equal(shift(1, IMAGES, 0.2), one)
    assert np.abs(shift(2, IMAGES, 0.2) - one).max() > 0.1
    assert one.shape == IMAGES.shape and one.dtype == IMAGES.dtype
    assert shift(1, jnp.asarray(IMAGES, jnp.bfloat16), 0.2).dtype == jnp.bfloat16
