"""The target's colours for the source: what the map does, and that a translation begins with it."""

import numpy as np
import pytest

from cdsde import load_config
from cdsde.data import open_domain, resize
from cdsde.diffusion import histograms
from cdsde.runtime import records
from cdsde.translation import compiled

CONFIG = "configs/twemoji2fluent.py"


def images(domain, split, count=40):
    source = open_domain("emoji", domain, split)
    return np.stack([resize(source[j]["image"], 32) for j in range(count)])


def applied(table, x):
    return np.asarray(histograms.apply(table, x))


def test_matched_images_have_the_targets_colours():
    source, target = images("twemoji", "train"), images("fluent", "train")
    table = histograms.table(source, target)
    assert table.shape == histograms.SHAPE and np.all(np.diff(table) >= 0)
    before = source.reshape(-1, 3).mean(0) - target.reshape(-1, 3).mean(0)
    after = (applied(table, source) + 1).reshape(-1, 3).mean(0) * 127.5
    after -= target.reshape(-1, 3).mean(0)
    assert np.abs(after).max() < 0.2 * np.abs(before).max()
    # Each quantile is the target's; between, a value of the source has many of the target's.
    wanted = np.quantile(target[..., 1], [0.05, 0.2, 0.4])
    found = np.quantile((applied(table, source) + 1)[..., 1] * 127.5, [0.05, 0.2, 0.4])
    np.testing.assert_allclose(found, wanted, atol=6)


def test_a_domain_has_its_own_colours_already():
    x = images("twemoji", "train")
    table = histograms.table(x, x)
    np.testing.assert_allclose(applied(table, x), x / 127.5 - 1, atol=1e-6)


def test_unseen_values_lie_between_their_neighbours():
    source = np.array([10, 30], np.uint8).repeat(3).reshape(2, 1, 1, 3)
    target = np.array([100, 200], np.uint8).repeat(3).reshape(2, 1, 1, 3)
    table = histograms.table(source, target)
    np.testing.assert_allclose(table[:, [0, 10, 20, 30, 255]], [[100, 100, 150, 200, 200]] * 3)


@pytest.mark.slow
def test_a_translation_begins_with_matched_colours():
    changes = {"method": "sdedit", "sample.start": 1, "sample.steps": 1}
    plain = load_config(CONFIG, changes)
    config = load_config(CONFIG, {**changes, "sample.match_colours": 60})
    params, origins = compiled.load_params(config, "nowhere")
    assert origins["colours"].startswith("train, 60 of fluent, 60 of twemoji (sha256 ")
    x, ids = images("twemoji", "test", 4), np.arange(4, dtype=np.uint32)
    y = compiled.Sampler(config, params)(x, ids)
    # At the lowest level the network leaves a picture as it is, to a grey level or two.
    near = np.abs(y / 127.5 - 1 - applied(params["colours"], x)).mean()
    assert near < 0.5 * np.abs(y / 127.5 - 1 - (x / 127.5 - 1)).mean()

    assert "colours" not in compiled.load_params(plain, "nowhere")[0]
    source = open_domain("emoji", "twemoji", "test")
    record = records.settings_record(config, origins, source)
    assert record["sample"]["match_colours"] == 60 and "colours" in record["weights"]
    assert "match_colours" not in records.settings_record(plain, {}, source)["sample"]


def test_a_generator_has_no_start_to_give_colours_to():
    with pytest.raises(ValueError, match="match_colours is 60, and config.method 'cut'"):
        load_config(CONFIG, {"method": "cut", "sample.match_colours": 60})
    with pytest.raises(ValueError, match="match_colours"):
        load_config(CONFIG, {"sample.match_colours": -1})
