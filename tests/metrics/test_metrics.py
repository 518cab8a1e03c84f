"""Metrics: the numbers of the published evaluation (tests/golden/egsde/metrics), and intervals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdsde import metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde" / "metrics"
TABLE = json.loads((GOLDEN / "metrics.json").read_text())
METRICS = {"L2": metrics.l2, "MSE": metrics.mse, "PSNR": metrics.psnr, "SSIM": metrics.ssim}


def shorter_side(image, size):
    width, height = (side * size // min(image.size) for side in image.size)
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def pictures(*names):
    """`[B, H, W, 3]` in [0, 1], read as the evaluation reads: shorter side to 256, bicubic."""
    read = [shorter_side(Image.open(GOLDEN / n), 256) for n in names]
    return np.stack(read) / np.float32(255)


@pytest.fixture(scope="module")
def six():
    names = [pair["name"] for pair in TABLE["pairs"]]
    assert len(names) == 6
    return [pictures(*(f"{d}/{n}.png" for n in names)) for d in ("source", "translated")]


@pytest.mark.parametrize("name", METRICS)
def test_published_numbers(six, name):
    values = METRICS[name](*six)
    assert values.shape == (6,)
    assert values.dtype == np.float64
    expected = [pair[name] for pair in TABLE["pairs"]]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-9)
    assert values.mean() == pytest.approx(TABLE["average_of_the_six"][name], rel=1e-4)
    np.testing.assert_allclose(METRICS[name](*six[::-1]), values, rtol=1e-5)


def test_large_source_is_read_down_as_published():
    source = pictures("source_512.png")
    expected = np.asarray(Image.open(GOLDEN / "source_512_resized_to_256.png").convert("RGB"))
    np.testing.assert_array_equal(np.round(source[0] * 255), expected)
    translated = pictures("translated_of_512.png")
    for name, metric in METRICS.items():
        value = metric(source, translated)[0]
        assert value == pytest.approx(TABLE["pair_512"][name], rel=1e-4), name


def test_identical_pictures(six):
    same = six[0][:2]
    np.testing.assert_allclose(metrics.psnr(same, same), 100, rtol=1e-12)
    np.testing.assert_array_equal(metrics.l2(same, same), 0)
    np.testing.assert_allclose(metrics.ssim(same, same), 1, atol=1e-6)


def test_simple_differences():
    a = np.zeros((2, 16, 12, 3), np.float32)
    b = a + np.float32(0.1) * np.array([1, 2], np.float32)[:, None, None, None]
    np.testing.assert_allclose(metrics.mse(a, b), [0.01, 0.04], rtol=1e-6)
    np.testing.assert_allclose(metrics.l2(a, b), np.sqrt(16 * 12 * 3 * np.array([0.01, 0.04])))
    np.testing.assert_allclose(metrics.psnr(a, b), 10 * np.log10([100, 25]), rtol=1e-6)
    # Two flat pictures: only the luminance term, with C1 = 0.01².
    luminance = 1e-4 / (np.array([0.01, 0.04]) + 1e-4)
    np.testing.assert_allclose(metrics.ssim(a, b), luminance, rtol=1e-4)


@pytest.mark.parametrize("shape", [(10, 64), (64, 10)])
def test_ssim_needs_its_window(shape):
    picture = np.zeros((1, *shape, 3), np.float32)
    message = rf"SSIM needs sides of at least 11 pixels, not \({shape[0]}, {shape[1]}\)"
    with pytest.raises(ValueError, match=message):
        metrics.ssim(picture, picture)
    enough = np.zeros((1, 11, 11, 3), np.float32)
    assert metrics.ssim(enough, enough) == pytest.approx(1)


# --- bootstrap ---


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for k in range(300):
        low, high = metrics.bootstrap_interval(generator.normal(5, 2, 40), 200, seed=k)
        covered += low <= 5 <= high
    assert 0.88 <= covered / 300 <= 0.98  # 0.95 less the bootstrap's shortfall at n = 40


def test_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(0, 2, 400)
    low, high = metrics.bootstrap_interval(values, 4000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    narrow = metrics.bootstrap_interval(values, 4000, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.674 * values.std() / 20, rel=0.06)
    assert low < narrow[0] < narrow[1] < high


def test_interval_is_a_function_of_its_seed():
    values = np.random.default_rng(2).normal(0, 1, 50)
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values, seed=0)
    assert metrics.bootstrap_interval(values, seed=1) != metrics.bootstrap_interval(values, seed=0)
    assert metrics.bootstrap_interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
    low, high = metrics.bootstrap_interval(values)
    assert type(low) is type(high) is float
