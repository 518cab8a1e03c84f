"""Trajectories, and the page: what it shows is what `--mode=sample` makes, without compiling."""

import contextlib

import numpy as np
import pytest
from helpers import FOLDER, TINY, free_port, no_new_programs, random_params
from PIL import Image

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.data import image_id
from cdsde.serve.live import Translator
from cdsde.serve.page import Page, shown
from cdsde.translation import film
from cdsde.translation import run as translation_run
from cdsde.translation.compiled import Sampler, load_sampler
from cdsde.weights import resolve

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A config of tiny networks on the emoji, with files of random weights for each of them."""
    folder = tmp_path_factory.mktemp("live")
    given = TINY | {"data.root": "emoji", "data.source": "twemoji", "data.target": "fluent"}
    given |= {"sample.steps": 4, "sample.clip": True, "sample.limit": 2, "sample.sheet": 0}
    config = load_config(FOLDER, given)
    config.cut.update(channels=8, num_blocks=1, layers=(0,))
    for stage in (*config_lib.GUIDED, "cut"):
        path = folder / f"{stage}.safetensors"
        resolve.save(path, config, stage, random_params(config, stage), {})
        config.weights[stage] = str(path)
    return folder, config


def test_kept_states_are_those_of_the_whole_trajectory(task):
    _, config = task
    config = config.copy_and_resolve_references()
    config.method = "sdedit"
    sampler, _ = load_sampler(config, "nowhere")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    ids = np.array([1, 2], np.uint32)
    y, every = sampler.states(images, ids, keep=4)
    z, few = sampler.states(images, ids, keep=2)
    np.testing.assert_allclose(z, y, atol=1e-6)
    np.testing.assert_allclose(few, every[:, 1::2], atol=1e-6)
    np.testing.assert_allclose(few[0, -1], y, atol=1e-6)


def test_strip_and_film_of_each_image(task, tmp_path):
    _, config = task
    config = config.copy_and_resolve_references()
    config.update(method="sdedit")
    config.sample.trajectory = True
    folder = translation_run.sample(config, tmp_path)
    names = [p.stem for p in sorted(folder.glob("*.png"))]
    made = folder / film.FOLDER
    assert len(names) == 2
    for name in names:
        strip, movie = Image.open(made / f"{name}.png"), Image.open(made / f"{name}.webp")
        assert strip.size[0] > 4 * 16 and movie.n_frames == 5  # the source and four states
        movie.seek(movie.n_frames - 1)
        last = np.asarray(movie.convert("RGB").resize((16, 16), Image.Resampling.NEAREST), int)
        result = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"), int)
        assert np.abs(last - result).max() <= 1
    # One that is lost comes back; the results stay as they are.
    (made / f"{names[0]}.webp").unlink()
    before = (folder / f"{names[1]}.png").stat().st_mtime_ns
    translation_run.sample(config, tmp_path)
    assert (made / f"{names[0]}.webp").exists()
    assert (folder / f"{names[1]}.png").stat().st_mtime_ns == before


def test_what_the_page_shows_is_what_sampling_makes(task, monkeypatch):
    _, config = task
    translator = Translator(config, "nowhere")
    assert translator.methods() == ["contrastive_sde", "egsde", "ilvr", "sdedit", "cut"]
    source = translator.source(np.full((40, 30, 3), 90, np.uint8))
    ids = np.array([image_id("picture")], np.uint32)
    for start, steps, weight in ((300, 4, 500.0), (200, 7, 50.0)):
        values = {"start": start, "weight": weight, "content_weight": 0.0}
        own = translator.settings("contrastive_sde", values, steps, seed=3)
        with no_new_programs() if start == 200 else contextlib.nullcontext():
            states = list(translator(source, own))
        assert [s.step for s in states][-1] == steps and set(states[-1].metrics) >= {"L2", "SSIM"}
        loaded = {s: resolve.load(own, "nowhere", s)[0] for s in ("score", "encoder")}
        expected = Sampler(own, loaded)(source[None], ids)[0]
        assert np.abs(states[-1].picture.astype(int) - expected).max() <= 1


def test_a_page_with_matched_colours_has_its_generators_too(task):
    config = task[1].copy_and_resolve_references()
    config.sample.match_colours = 20
    translator = Translator(config, "nowhere")
    source = translator.source(np.full((40, 30, 3), 90, np.uint8))
    for method, matched in (("sdedit", 20), ("cut", 0)):
        own = translator.settings(method, {"start": 200}, steps=3)
        assert own.sample.match_colours == matched
        assert list(translator(source, own))[-1].picture.shape == (16, 16, 3)


def test_sliders_are_those_of_the_method(task):
    translator = Translator(task[1], "nowhere")
    sliders = translator.sliders("egsde")
    assert list(sliders) == ["start", "domain_weight", "content_weight"]
    assert sliders["start"].value == 500 and sliders["start"].most == 1000
    assert sliders["domain_weight"].title.startswith("λ_s")
    assert translator.sliders("cut") == {} and translator.steps("cut") == 1
    own = translator.settings("egsde", {"domain_weight": 7.0})
    assert own.egsde.domain_weight == 7.0 and own.egsde.content_weight == 2.0


def test_a_visitor_who_leaves_blocks_nobody(task):
    translator = Translator(task[1], "nowhere")
    source = translator.source(np.full((40, 30, 3), 90, np.uint8))
    own = translator.settings("sdedit", {"start": 200}, steps=4)
    left = translator(source, own)
    next(left)  # and never asked for more
    assert [s.step for s in translator(source, own)] == [1, 2, 3, 4]


def test_what_the_page_refuses(task, tmp_path):
    _, config = task
    page = Page(config, tmp_path)
    assert list(page.translators[config.task].sliders("sdedit")) == ["start"]
    assert len(page.examples(config.task)) == 12

    def ask(picture, start=100, steps=3):
        return list(page.translate(config.task, "sdedit", picture, {"start": start}, steps, 0))

    with pytest.raises(ValueError, match="there is no picture yet"):
        ask(None)
    bad = tmp_path / "bad.png"
    bad.write_text("none")
    with pytest.raises(ValueError, match="'bad.png' cannot be read as a picture: take a whole PNG"):
        ask(str(bad))
    with pytest.raises(ValueError, match="config.sample.start is 1001; it must lie in 1..1000"):
        ask(np.zeros((20, 20, 3), np.uint8), start=1001)
    assert shown(np.zeros((16, 16, 3), np.uint8)).shape == (320, 320, 3)
    config = config.copy_and_resolve_references()
    config.weights.score = config.weights.cut = None
    with pytest.raises(ValueError, match="has no trained networks: train them with --mode=train"):
        Page(config, tmp_path)


@pytest.mark.slow
def test_the_page_in_a_browser(task, tmp_path):
    pytest.importorskip("gradio")
    browser = pytest.importorskip("playwright.sync_api")
    from cdsde.serve.page import serve

    _, config = task
    config = config.copy_and_resolve_references()
    config.serve.port = port = free_port()
    blocks = serve(config, tmp_path, block=False)
    try:
        with browser.sync_playwright() as p:
            try:
                window = p.chromium.launch(channel="chromium", args=["--no-sandbox"])
            except browser.Error:
                path = "/usr/bin/chromium"
                window = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
            tab = window.new_page()
            tab.goto(f"http://127.0.0.1:{port}")
            tab.locator(".thumbnail-item, .gallery-item").nth(3).click()
            tab.wait_for_timeout(1500)
            tab.get_by_role("button", name="Translate").click()
            tab.wait_for_selector("text=step 4 of 4", timeout=120_000)
            assert tab.get_by_text("SSIM").is_visible()
            for method, done in (("cut", "step 1 of 1"), ("sdedit", "step 4 of 4")):
                tab.get_by_text(method, exact=True).click()  # methods with fewer sliders
                tab.wait_for_timeout(1500)
                tab.get_by_role("button", name="Translate").click()
                tab.wait_for_selector(f"text={done}", timeout=120_000)
            bad = tmp_path / "bad.png"
            bad.write_text("none")
            tab.set_input_files("input[type=file]", str(bad))
            tab.wait_for_timeout(1500)
            tab.get_by_role("button", name="Translate").click()
            tab.wait_for_selector("text=cannot be read as a picture", timeout=60_000)
            window.close()
    finally:
        blocks.close()
