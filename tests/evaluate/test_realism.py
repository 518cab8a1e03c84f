"""Distances between sets of features, and the statistics they are made from."""

import jax
import numpy as np
import pytest
import scipy.linalg
from helpers import quick_extractor

from cdsde import load_config, metrics
from cdsde.data import open_domain, resize
from cdsde.evaluate import extractors, realism, translations
from cdsde.runtime import mesh


def sets(n: int, m: int, d: int, seed: int = 0):
    r = np.random.default_rng(seed)
    mix = r.normal(size=(d, d)) / np.sqrt(d)
    return r.normal(size=(n, d)) @ mix + 0.3, np.abs(r.normal(size=(m, d))) @ mix.T


# --- distances ---


def scipy_frechet(a, b) -> float:
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * root)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 400, 40), (60, 500, 90), (50, 70, 128)])
def test_frechet_is_scipys(n, m, d):
    # With fewer images than numbers C_a C_b is singular, the field's usual case.
    a, b = sets(n, m, d)
    got = metrics.frechet_distance(metrics.moments(a), metrics.moments(b))
    assert got == pytest.approx(scipy_frechet(a, b), rel=1e-6)


@pytest.mark.slow
def test_frechet_is_scipys_at_the_usual_size():
    a, b = sets(500, 700, 2048)
    got = metrics.frechet_distance(metrics.moments(a), metrics.moments(b))
    assert got == pytest.approx(scipy_frechet(a, b), rel=1e-6)


def test_frechet_of_gaussians_that_are_known():
    # Two points each: means 0 and 3, variances 2 and 8 of the first of two numbers.
    a, b = np.array([[-1.0, 0], [1, 0]]), np.array([[1.0, 0], [5, 0]])
    expected = 3**2 + (np.sqrt(2) - np.sqrt(8)) ** 2
    assert metrics.frechet_distance(metrics.moments(a), metrics.moments(b)) == pytest.approx(
        expected
    )
    assert metrics.frechet_distance(metrics.moments(a), metrics.moments(a)) == pytest.approx(0)
    with pytest.raises(ValueError, match="needs 2 images a side, there are 1 and 2"):
        metrics.frechet_distance(metrics.moments(a[:1]), metrics.moments(b))


def test_moments_of_parts_add_up():
    a, _ = sets(100, 5, 7)
    whole, none = metrics.moments(a), metrics.moments(a[:0])
    parts = metrics.add_moments(metrics.moments(a[30:]), metrics.moments(a[:30]))
    for parted in (parts, metrics.add_moments(none, whole)):
        assert parted.count == 100
        np.testing.assert_allclose(parted.total, whole.total, rtol=1e-12)
        np.testing.assert_allclose(parted.outer, whole.outer, rtol=1e-12)


def kernel_distance(a, b):
    return metrics.kernel_statistic(a, b)(np.arange(len(a)))


def test_kernel_distance_is_the_mean_over_pairs():
    a, b = sets(9, 12, 5)

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    aa = np.mean([k(a[i], a[j]) for i in range(9) for j in range(9) if i != j])
    bb = np.mean([k(b[i], b[j]) for i in range(12) for j in range(12) if i != j])
    ab = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(aa + bb - 2 * ab)
    at = np.array([0, 3, 4, 8])
    left = metrics.kernel_statistic(a, b)(at)
    assert left == pytest.approx(kernel_distance(a[at], b))


def test_kernel_distance_of_one_distribution_is_nought_on_average():
    r = np.random.default_rng(0)
    values = [kernel_distance(*r.normal(size=(2, 20, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0


def test_precision_and_recall_of_what_is_easy_to_see():
    r = np.random.default_rng(0)
    real = np.concatenate([r.normal(size=(50, 3)), r.normal(size=(50, 3)) + 100])
    # One of the two clusters is made, and nothing else: all of it is real, half of the real is it.
    made = r.normal(size=(60, 3)) * 0.5
    precision, recall = metrics.precision_recall(made, real)
    assert precision > 0.95 and 0.2 < recall <= 0.5
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(made + 1000, real) == (0.0, 0.0)
    with pytest.raises(ValueError, match="need more images than 3 and 100"):
        metrics.precision_recall(made[:3], real)


def test_jackknife_covers_the_mean():
    r = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        x = r.normal(size=100)
        low, high = metrics.jackknife_interval(lambda at, x=x: x[at].mean(), 100, seed=seed)
        inside += low < 0 < high
    assert 180 <= inside <= 199


# --- statistics of images ---


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)


def reading(images: np.ndarray):
    return images.__getitem__, len(images)


def test_neither_devices_nor_batches_nor_padding_change_the_statistics(monkeypatch):
    extractor, images = quick_extractor(monkeypatch), pictures(75)
    real = realism.statistics(extractor, *reading(pictures(50, 1)))
    results = []
    for size, devices in ((1, 1), (75, 8), (13, 8), (32, 3)):
        chosen = mesh.make_mesh(jax.devices()[:devices])
        monkeypatch.setattr(realism, "BATCH", size)
        made = realism.statistics(extractor, *reading(images), devices=chosen)
        assert made.moments["corners"].count == 75
        results.append(realism.compare("quick", made, real))
    values = np.array([[row["value"] for row in r.values()] for r in results])
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), rtol=1e-6)
    assert list(results[0]) == ["FD", "KD", "precision-corners", "recall-corners"]
    row = results[0]["FD"]
    assert row["low"] < row["value"] < row["high"] and row["images"] == 75


def test_statistics_are_kept_under_a_hash_of_every_pixel(monkeypatch, tmp_path):
    extractor, images = quick_extractor(monkeypatch), pictures(20)
    first = realism.statistics(extractor, *reading(images), cache=tmp_path)
    [file] = tmp_path.iterdir()

    def unused(params, pictures):
        raise AssertionError("computed again")

    idle = extractor._replace(apply=unused)
    again = realism.statistics(idle, *reading(images), cache=tmp_path)
    assert again.images == first.images and list(tmp_path.iterdir()) == [file]
    np.testing.assert_array_equal(again.kept["corners"], first.kept["corners"])
    np.testing.assert_array_equal(again.moments["corners"].outer, first.moments["corners"].outer)
    changed = images.copy()
    changed[7, 2, 2, 0] ^= 1
    for other, network in ((changed, extractor), (images, extractor._replace(hash="01"))):
        realism.statistics(network, *reading(other), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    # A file that is cut off, or that only some of the machines have, is computed again.
    file.write_bytes(file.read_bytes()[:100])
    realism.statistics(extractor, *reading(images), cache=tmp_path)
    np.testing.assert_array_equal(
        realism.statistics(idle, *reading(images), cache=tmp_path).kept["corners"],
        first.kept["corners"],
    )
    monkeypatch.setattr(mesh, "in_every_process", lambda mine: False)
    with pytest.raises(AssertionError, match="computed again"):
        realism.statistics(idle, *reading(images), cache=tmp_path)


def test_of_a_long_list_some_features_are_kept(monkeypatch):
    extractor, images = quick_extractor(monkeypatch), pictures(75)
    some = realism.statistics(extractor, *reading(images), keep=30)
    every = realism.statistics(extractor, *reading(images))
    assert some.kept["corners"].shape == (30, 3) and some.moments["corners"].count == 75
    rows = {tuple(row) for row in every.kept["corners"]}
    assert {tuple(row) for row in some.kept["corners"]} < rows
    table = realism.compare("quick", some, every)
    assert table["FD"]["value"] == pytest.approx(0, abs=1e-9) and table["FD"]["low"] is None


# --- the real network on the real pictures ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "target", "frechet", "kernel"),
    [
        ("fluent", "fluent", 3.8, 3.8),
        ("twemoji", "fluent", 70.3, 39.7),
        ("noto", "fluent", 42.0, 25.8),
        ("fluent", "twemoji", 65.0, 46.7),
    ],
)
def test_efficientnet_separates_the_styles_as_published(
    style, target, frechet, kernel, tmp_path_factory
):
    # The table that came with the reference vectors, computed with PyTorch.
    extractor = extractors.load("efficientnet_lite0")

    def images(domain, split):
        source = open_domain("emoji", domain, split)
        every = np.stack([resize(source[j]["image"], 64) for j in range(len(source))])
        return reading(every)

    cache = tmp_path_factory.getbasetemp() / "statistics"
    real = realism.statistics(extractor, *images(target, "train"), cache=cache)
    made = realism.statistics(extractor, *images(style, "test"), cache=cache)
    table = realism.compare("efficientnet_lite0", made, real)
    assert table["FD-EffNetLite0-block4"]["value"] == pytest.approx(frechet, abs=0.06)
    assert table["KID-EffNetLite0 x1000"]["value"] == pytest.approx(kernel, abs=0.06)


def test_a_name_for_every_extractor():
    assert set(realism.MEASURES) <= set(extractors.NAMES)
    config = load_config("configs/twemoji2fluent.py")
    assert (
        translations.pairwise_metrics(translations.lpips(config)).keys() == metrics.METRICS.keys()
    )
    with pytest.raises(ValueError, match=r"weights\.pth"):
        config.eval.lpips_alex = "weights.pth"
        translations.pairwise_metrics(translations.lpips(config))
