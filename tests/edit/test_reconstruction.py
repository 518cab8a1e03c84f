"""What inversions promise, on the shipped model of emoji and words: the picture comes back."""

import functools

import numpy as np
import pytest

from cdsde import load_config
from cdsde.data import decode, inputs, to_uint8
from cdsde.edit import pipeline
from cdsde.edit import run as edit_run
from cdsde.evaluate import translations

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """`edited(**keys)`: sources, what encoder and decoder leave, reconstructions and edits."""
    model = pipeline.load("shipped:emoji-words")

    @functools.cache
    def autoencoded(pictures):
        images = np.frombuffer(pictures, np.uint8).reshape(-1, 64, 64, 3)
        z = pipeline._encode(model, model.params, images)
        return to_uint8(
            np.asarray(model.vae.apply(model.params["vae"], z / model.factor, method="decode"))
        )

    def make(**keys):
        words = {"edit.source": "dark", "edit.target": "dark", "sample.limit": 3}
        changes = {key.replace("__", "."): value for key, value in keys.items()}
        config = load_config("emoji_words", {**words, "edit.steps": 20, **changes})
        folder = edit_run.edit(config, tmp_path_factory.mktemp("edits"))
        source = inputs.open_input(config)
        chosen = edit_run.chosen_images(config, source)
        read = translations.resized(config, source)
        pictures = np.stack([read(j) for j in chosen])
        written = [
            np.stack([decode(place / f"{source.ids[j]}.png") for j in chosen])
            for place in (folder / edit_run.RECONSTRUCTION, folder)
        ]
        every = pictures, autoencoded(pictures.tobytes()), *written
        return [x.astype(np.float64) for x in every]

    return make


def error(a, b):
    """Mean squared error of each picture, of values up to 255."""
    return ((a - b) ** 2).mean((1, 2, 3))


def test_null_texts_lose_hardly_more_than_the_autoencoder(edited):
    """Guided sampling with the caption leaves the picture; with null texts it comes back."""
    source, kept, back, again = edited(method="ddim", edit__inversion="null_text")
    assert (error(back, source) < 1.1 * error(kept, source)).all()
    assert (error(again, source) < 1.1 * error(kept, source)).all()
    *_, plain, guided = edited(method="ddim", edit__inversion="next")
    assert (error(guided, source) > 4 * error(kept, source)).all()
    assert (error(plain, source) > 1.2 * error(kept, source)).all()


# Its own text with the scale of the inversion; no guidance; a word added and removed at once.
NOTHING = {
    "edit_friendly": {"edit__scale": 3.5},
    "ledits": {"edit__scale": 0.0, "edit__target": "light"},
    "ledits, the same word": {"edit__scale": 5.0},
}
SOMETHING = {"edit_friendly": {"edit__scale": 3.5}, "ledits": {"edit__scale": 5.0}}


@pytest.mark.parametrize("case", NOTHING)
def test_without_an_edit_the_replayed_noises_bring_the_picture_back(edited, case):
    _, kept, back, again = edited(method=case.split(",")[0], **NOTHING[case])
    for found in (back, again):
        assert np.abs(found - kept).max() <= 1 and np.abs(found - kept).mean() < 0.01


@pytest.mark.parametrize("method", SOMETHING)
def test_with_another_word_only_the_reconstruction_comes_back(edited, method):
    _, kept, back, other = edited(method=method, edit__target="light", **SOMETHING[method])
    assert np.abs(back - kept).max() <= 1
    assert (np.abs(other - kept).max((1, 2, 3)) > 3).all()
