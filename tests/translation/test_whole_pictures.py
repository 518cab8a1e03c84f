"""Whole pictures: borders that are cut off again, and results of the picture's own size."""

import jax
import numpy as np
import pytest
from helpers import read_json
from PIL import Image
from sampling_helpers import picture, results

from cdsde import api, load_config, load_sampler
from cdsde import config as config_lib
from cdsde.config import checks
from cdsde.data import decode, image_id, inputs
from cdsde.diffusion import noise
from cdsde.diffusion.solvers import SOLVERS
from cdsde.evaluate import translations
from cdsde.translation import film, tiles
from cdsde.translation import run as translation_run

pytestmark = pytest.mark.usefixtures("compile_quickly")
SIZES = {"wide.png": (41, 20), "high.png": (18, 50), "square.png": (16, 16), "small.png": (9, 12)}


@pytest.fixture
def shapes(tmp_path):
    """A folder of pictures of several shapes."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        picture(number, size).save(folder / name)
    return folder


# --- noise and tiles ---


def test_tiles_of_a_picture_have_the_same_noise_where_they_overlap():
    key, shape = jax.random.key(3), (8, 8, 3)
    corners = np.array([[0, 0], [3, 5], [3, 9], [20, 11], [0, 0]], np.int32)
    ids = np.array([1, 1, 1, 1, 2], np.uint32)
    of_tiles = noise.of_images(key, ids, shape, corners)
    plain = noise.of_images(key, ids, shape)
    for draw in (lambda n: n.start(1), lambda n: n.step(0, 0, 7), lambda n: n.reference(0, 0, 7)):
        canvas = np.full((2, 40, 40, 3), np.nan)
        drawn = np.asarray(draw(of_tiles))
        for (y, x), image, tile in zip(corners, ids, drawn, strict=True):
            place = canvas[image - 1, y : y + 8, x : x + 8]
            seen = ~np.isnan(place)
            np.testing.assert_array_equal(place[seen], tile[seen])
            place[:] = tile
        values = canvas[0][~np.isnan(canvas[0])]
        assert len(np.unique(values)) == len(values), "no noise is used twice"
        # The tile at (0, 0) is a picture of the network's size.
        np.testing.assert_array_equal(drawn[[0, 4]], np.asarray(draw(plain))[[0, 4]])
    assert abs(values.mean()) < 0.15 and abs(values.std() - 1) < 0.1


@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (40, 33), (100, 170)])
def test_tiles_cover_a_picture_and_come_together_again(shape):
    places = tiles.layout(*shape, 16)
    r = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    cut = places.cut(r)
    assert cut.shape[1:] == (16, 16, 3)
    np.testing.assert_allclose(places.joined(cut), r, atol=1e-6)
    np.testing.assert_allclose(places.agreed(cut), cut, atol=1e-6)
    if len(cut) > 1:  # what one tile says of a pixel counts less towards its border
        other = cut.copy()
        other[0] += 1
        change = places.joined(other) - r
        assert change[0, 0, 0] == pytest.approx(1)
        assert change[15, 0, 0] < change[8, 0, 0] < 1 and change[15, 0, 0] < 0.3


# --- the picture's own size ---


# What methods need at 16², or with one round; the guided ones start from low levels.
OWN = {
    "sddm": {"sddm__blocks": 4, "sddm__until": 100, "sddm__energy": "egsde", "sddm__factor": 4},
    "cyclediffusion": {"cyclediffusion__refine": 0},
}
ONE_ROUND = ("sddm", "ddib", "cyclediffusion")


def slow_but(names, *quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.campaign) for n in names]


@pytest.mark.parametrize("method", slow_but((*config_lib.SDES, "cut"), "sdedit", "cut"))
def test_a_picture_of_the_networks_size_is_translated_as_without_keep_size(task, method):
    pixels = np.array(picture(1, (16, 16)))
    config = task(method, sample__start=200, **OWN.get(method, {}))
    expected = api.translate(config, [pixels], names=["a"])
    config.sample.keep_size = True
    (kept,) = api.translate(config, [pixels], names=["a"])
    np.testing.assert_allclose(kept, expected[0], atol=1)


CASES = [pytest.param("sdedit", "dpmpp_2m", 0.0, marks=pytest.mark.slow)]
CASES += [
    pytest.param(method, solver, eta, marks=pytest.mark.campaign)
    for method, solver, eta in (
        *((method, "ancestral", 0.0) for method in config_lib.SDES if method != "ddib"),
        *(("contrastive_sde", solver, 0.5) for solver in SOLVERS if solver != "ancestral"),
        ("cyclediffusion", "ddim", 0.5),
        ("ddib", "ddim", 0.0),
    )
]


@pytest.mark.parametrize("method, solver, eta", CASES)
def test_neither_batch_nor_devices_change_a_picture(task, method, solver, eta, on_devices):
    pixels = np.array(picture(1, (41, 30)))
    made = []
    for batch, devices in ((3, 1), (64, 8)):
        on_devices(devices)
        config = task(method, sample__start=200, **OWN.get(method, {}))
        config.sample.update(keep_size=True, solver=solver, eta=eta, batch_size=batch)
        config.sample.rounds = 1 if method in ONE_ROUND else 2
        (result,) = api.translate(config, [pixels], names=["a"])
        assert result.shape == pixels.shape
        made.append(result.astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1


@pytest.mark.slow
def test_no_seam_is_visible(task):
    """Of a constant picture, borders of tiles are no different from their insides."""
    config = task("sdedit", sample__start=200, sample__keep_size=True, sample__steps=4)
    plain = np.full((70, 70, 3), 120, np.uint8)
    (result,) = api.translate(config, [plain], names=["a"])
    jumps = np.abs(np.diff(result.astype(float), axis=1)).mean((0, 2))
    starts = np.unique(tiles.layout(70, 70, 16).corners[:, 1])
    seams = np.isin(np.arange(69), [*(starts[1:] - 1), *(starts[:-1] + 15)])
    assert jumps[seams].mean() < 1.15 * jumps[~seams].mean()


@pytest.mark.parametrize("method", ["sdedit", "cut"])
def test_every_picture_comes_back_at_its_own_size(task, shapes, tmp_path, method):
    config = task(method, sample__input=shapes, sample__keep_size=True)
    folder = translation_run.sample(config, tmp_path)
    made = results(folder)
    assert {n: x.shape[1::-1] for n, x in made.items()} == SIZES
    assert read_json(folder / "settings.json")["sample"]["keep_size"] is True
    assert max(decode(folder / "sheet.png").shape) < 1200
    # The same from Python, and measured at the networks' size.
    (alone,) = api.translate(config, [shapes / "wide.png"])
    np.testing.assert_allclose(alone, made["wide.png"], atol=1)
    config.eval.reference = ""
    row = translations.evaluate(config, tmp_path)[method]
    assert row["L2 to source"]["images"] == len(SIZES)
    config.sample.keep_size = False
    with pytest.raises(ValueError, match="different: sample.keep_size was True and is "):
        translation_run.sample(config, tmp_path)


def test_what_does_not_go_with_keep_size(task):
    config = task(sample__keep_size=True)
    config.sample.trajectory = True
    with pytest.raises(ValueError, match="keep_size and config.sample.trajectory are True"):
        checks.validate(config)
    with pytest.raises(
        ValueError, match="keep_size is True, and config.method 'ddim', which edits"
    ):
        load_config("emoji_words", {"sample.keep_size": True, "method": "ddim"})


# --- pad ---


@pytest.mark.parametrize("method", [pytest.param("sdedit", marks=pytest.mark.slow), "cut"])
def test_pad_translates_the_whole_picture_and_cuts_its_borders_off(task, shapes, tmp_path, method):
    films = method == "sdedit"
    config = task(method, sample__input=shapes, data__fit="pad", sample__trajectory=films)
    folder = translation_run.sample(config, tmp_path)
    made = results(folder)
    sizes = {
        "wide.png": (16, 8),
        "high.png": (6, 16),
        "square.png": (16, 16),
        "small.png": (12, 16),
    }
    assert {n: x.shape[1::-1] for n, x in made.items()} == sizes
    # It is the part of the network's result that shows the picture.
    read, pixels = inputs.reading(config), decode(shapes / "wide.png")
    ids = np.array([image_id("wide.png")], np.uint32)
    square = load_sampler(config, ".")[0](read(pixels)[None], ids)[0]
    np.testing.assert_allclose(square[4:12], made["wide.png"], atol=1)
    (alone,) = api.translate(config, [shapes / "wide.png"])
    np.testing.assert_allclose(alone, made["wide.png"], atol=1)
    if films:
        with Image.open(folder / film.FOLDER / "wide.webp") as movie:
            assert movie.width == 2 * movie.height
    config.eval.reference = ""
    row = translations.evaluate(config, tmp_path)[method]
    assert row["L2 to source"]["images"] == len(SIZES) and row["L2 to source"]["value"] > 0
