"""Metrics of drawings: numbers made by hand."""

import numpy as np

from cdsde import data, metrics


def picture(*dark: tuple[int, int]) -> np.ndarray:
    image = np.ones((8, 8, 3))
    for position in dark:
        image[position] = 0
    return image


def test_overlap_counts_dark_pixels():
    a = picture((1, 1), (1, 2), (5, 5))
    b = picture((1, 1), (1, 2), (2, 2))
    values = metrics.overlap(np.stack([a, a, picture()]), np.stack([b, a, picture()]))
    np.testing.assert_allclose(values, [2 / 4, 1, 1])
    light = np.full((1, 8, 8, 3), 0.6)
    assert metrics.overlap(light, picture((0, 0))[None]) == 0


def test_real_characters_are_legible_and_others_are_not():
    pairs = data.open_domain("glyphs", "mincho", "val")
    truth = np.stack([pairs[j]["image"] for j in range(40)]) / 255
    features = metrics.blurred(truth)
    right = np.arange(40)
    assert metrics.legible(features, features, right).all()
    assert not metrics.legible(features[::-1], features, right).any()
    moved = metrics.blurred(np.roll(truth, 1, axis=2))
    assert metrics.legible(moved, features, right).mean() > 0.9
    gothic = data.open_domain("glyphs", "gothic", "val")
    source = metrics.blurred(np.stack([gothic[j]["image"] for j in range(40)]) / 255)
    assert metrics.legible(source, features, right).mean() > 0.9
