"""Trajectories, and the page: what it shows is what `--mode=sample` makes, without compiling."""

import contextlib
import json
import time

import numpy as np
import pytest
from helpers import FOLDER, TINY, free_port, no_new_programs, one_sentence, random_params
from PIL import Image

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.data import image_id
from cdsde.serve.live import Translator
from cdsde.serve.page import Page, serve, shown
from cdsde.translation import film
from cdsde.translation import run as translation_run
from cdsde.translation.compiled import Sampler, load_sampler
from cdsde.weights import checkpoint, exported, resolve

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
        exported.save(path, config, stage, random_params(config, stage), {})
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
    config.method = "sdedit"  # the task's own method comes first
    assert translator.methods()[0] == "sdedit"
    config.method = "contrastive_sde"
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


@pytest.mark.parametrize("method", ["ddib", pytest.param("cyclediffusion", marks=pytest.mark.slow)])
def test_the_page_has_methods_that_need_the_sources_network(task, method, tmp_path):
    config = task[1].copy_and_resolve_references()
    assert method not in Translator(config, "nowhere").methods()
    path = tmp_path / "source.safetensors"
    exported.save(path, config, "source_score", random_params(config, "source_score"), {})
    config.weights.source_score = str(path)
    translator = Translator(config, "nowhere")
    assert method in translator.methods()
    own = translator.settings(method, {}, steps=4)
    states = list(translator(translator.source(np.full((40, 30, 3), 90, np.uint8)), own))
    assert states[-1].picture.shape == (16, 16, 3) and states[-1].step == states[-1].steps


def test_a_page_with_matched_colours_has_its_generators_too(task):
    config = task[1].copy_and_resolve_references()
    config.sample.match_colours = 20
    translator = Translator(config, "nowhere")
    source = translator.source(np.full((40, 30, 3), 90, np.uint8))
    for method, matched in (("sdedit", 20), ("cut", 0)):
        own = translator.settings(method, {"start": 200}, steps=3)
        assert own.sample.match_colours == matched
        assert list(translator(source, own))[-1].picture.shape == (16, 16, 3)


def test_the_page_offers_no_method_whose_network_knows_another_domain(task):
    folder, config = task
    config = config.copy_and_resolve_references()
    config.weights.score = "shipped:score-fluent-64"
    assert "sdedit" in Translator(config, folder / "empty").methods()
    config.data.target = "noto"
    assert "sdedit" not in Translator(config, folder / "empty").methods()


def test_sliders_are_those_of_the_method(task):
    translator = Translator(task[1], "nowhere")
    sliders = translator.sliders("egsde")
    assert list(sliders) == ["start", "domain_weight", "content_weight"]
    assert sliders["start"].value == 500 and sliders["start"].most == 1000
    assert sliders["domain_weight"].title.startswith("λ_s")
    assert translator.sliders("cut") == {} and translator.steps("cut") == 1
    own = translator.settings("egsde", {"domain_weight": 7.0})
    assert own.egsde.domain_weight == 7.0 and own.egsde.content_weight == 2.0


def test_a_setting_that_the_task_refuses_has_no_slider():
    """The contrast of domains on a task without images of the domains to contrast."""
    contrasted = {"contrastive_sde.domain_images": 16, "contrastive_sde.domain_weight": 50.0}
    for changes, usable in (({}, False), (contrasted, True)):
        translator = Translator(load_config("twemoji2fluent", changes), "nowhere")
        assert ("domain_weight" in translator.sliders("contrastive_sde")) == usable
        for name, slider in translator.sliders("contrastive_sde").items():
            for value in (slider.least, slider.most):
                translator.settings("contrastive_sde", {name: value}, steps=1)


def test_a_number_that_needs_another_network_has_no_slider_and_is_refused():
    with_network, without = (
        Translator(load_config(name), "nowhere") for name in ("gothic2mincho", "twemoji2fluent")
    )
    slider = with_network.sliders("contrastive_sde")["score_weight"]
    assert (slider.value, slider.least) == (0.5, 0)
    assert "score_weight" not in without.sliders("contrastive_sde")
    with pytest.raises(ValueError, match="'score_weight' is 0 here, and any other value needs"):
        without.settings("contrastive_sde", {"score_weight": 0.5})
    without.settings("contrastive_sde", {"score_weight": 0.0})


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
    with pytest.raises(ValueError, match="the task is 'x'; choose one of folder"):
        list(page.translate("x", "sdedit", np.zeros((20, 20, 3), np.uint8), {}, 3, 0))
    with pytest.raises(ValueError, match="the task is .*; choose one of folder"):
        list(page.translate(["folder"], "sdedit", np.zeros((20, 20, 3), np.uint8), {}, 3, 0))
    with pytest.raises(ValueError, match="the method is 'gan'; choose one of contrastive_sde, egs"):
        list(page.translate(config.task, "gan", np.zeros((20, 20, 3), np.uint8), {}, 3, 0))
    with pytest.raises(ValueError, match="config.sample.start is 1001; it must lie in 1..1000"):
        ask(np.zeros((20, 20, 3), np.uint8), start=1001)
    assert shown(np.zeros((16, 16, 3), np.uint8)).shape == (320, 320, 3)
    config = config.copy_and_resolve_references()
    config.weights.score = config.weights.cut = None
    with pytest.raises(ValueError, match="has no trained networks: train them with --mode=train"):
        Page(config, tmp_path)


def test_what_a_visitor_may_ask_is_told_by_name(task):
    translator = Translator(task[1], "nowhere")
    for wrong, expected in (
        (
            dict(method="egsde", values={"weight": 3}),
            "egsde has no setting 'weight'; it has start, ",
        ),
        (dict(method="sdedit", values={"start": "a"}), "start is 'a'; it must be a number"),
        (dict(method="sdedit", values={"start": float("nan")}), "start is 'nan'; it must be"),
        (dict(method="sdedit", seed=None), "seed is 'None'; it must be a number"),
        (dict(method="sdedit", seed=True), "seed is 'True'; it must be a number"),
        (dict(method="sdedit", seed=0.4), "seed is 0.4; it must be a whole number"),
        (dict(method="sdedit", steps=2.7), "steps is 2.7; it must be a whole number"),
        (dict(method="sdedit", steps=10**400), "steps is '1000*'; it must be a number"),
        (dict(method="sdedit", values={"start": 1.9}), "start is 1.9; it must be a whole number"),
        (dict(method="sdedit", values=[1]), "settings is not an object, such as"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            translator.settings(**wrong)
        assert one_sentence(str(error.value))
    own = translator.settings("sdedit", {"start": 20.0}, steps=3.0, seed=2.0).sample
    assert (own.start, own.steps, own.seed) == (20, 3, 2)


def test_pictures_and_translations_have_bounds(task, tmp_path):
    config = task[1].copy_and_resolve_references()
    config.serve.update(max_pixels=2000, max_megabytes=1, max_seconds=1)
    page = Page(config, tmp_path)
    path = tmp_path / "a.png"

    def said(expected, call):
        with pytest.raises(ValueError, match=expected) as error:
            call()
        assert one_sentence(str(error.value)) and str(tmp_path) not in str(error.value)

    path.write_text("none")
    said("'a.png' cannot be read as a picture: take a whole PNG", lambda: page.read(str(path)))
    Image.new("RGB", (50, 41)).save(path)
    said("'a.png' has 50 x 41 pixels, more than the 2,000", lambda: page.read(str(path)))
    path.write_bytes(bytes(1_100_000))
    said("'a.png' has 1.1 MB, and 1 are read: make it smaller", lambda: page.read(str(path)))
    Image.new("RGB", (50, 40)).save(path)
    picture = page.read(str(path))
    states = page.translate(config.task, "sdedit", picture, {}, 3, 0)
    next(states)
    time.sleep(1.1)
    said(r"step \d of 3 was reached after 1 s, the most .*; take fewer steps", lambda: list(states))


def test_the_page_shows_the_whole_picture_with_pad(task, tmp_path):
    config = task[1].copy_and_resolve_references()
    config.data.fit = "pad"
    wide = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    page = Page(config, tmp_path)
    last = list(page.translate(config.task, "sdedit", wide, {"start": 100}, 3, 0))[-1]
    assert last.picture.shape == (8, 16, 3)


def test_each_task_of_a_page_has_its_own_checkpoints(task, tmp_path, monkeypatch, golden):
    """Those of the command line's task are no networks of the others."""
    monkeypatch.chdir(tmp_path)
    _, config = task
    config = config.copy_and_resolve_references()
    trained = json.loads(config.to_json_best_effort())
    checkpoint.save_imported(tmp_path, "score", random_params(config, "score"), trained)
    (tmp_path / "other.py").write_text(
        "from cdsde.api import load_config\ndef get_config():\n"
        f"    c = load_config({str(FOLDER)!r}, {TINY!r})\n"
        "    c.task, c.method = 'other', 'sdedit'\n"
        f"    c.weights.score = {str(golden / 'pixel' / 'diffusers' / 'a_ddpm_root')!r}\n"
        "    return c\n"
    )
    config.serve.tasks = (str(tmp_path / "other.py"), "twemoji2fluent", "mincho2gothic")
    page = Page(config, tmp_path)
    assert list(page.translators) == [config.task, "other", "twemoji2fluent", "mincho2gothic"]
    assert "sdedit" in page.translators["mincho2gothic"].methods()
    other = page.translators["other"]
    states = list(other(other.source(np.zeros((16, 16, 3), np.uint8)), other.settings("sdedit")))
    assert states[-1].step == states[-1].steps
    # What does not fit is not offered.
    config.score.channels = 64
    assert "sdedit" not in Translator(config, tmp_path).methods()


def test_tasks_lie_beside_their_config_wherever_one_stands(task, tmp_path, monkeypatch):
    text = (
        "from cdsde import config\ndef get_config():\n    c = config.base()\n"
        "    c.task = {!r}\n    c.serve.tasks = {!r}\n    return c\n"
    )
    (tmp_path / "mine.py").write_text(text.format("mine", ("other", "two.py", "twemoji2fluent")))
    (tmp_path / "other.py").write_text(text.format("other", ()))
    (tmp_path / "two.py").write_text(text.format("two", ()))
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "mine.py")
    beside = [str(tmp_path / name) for name in ("other.py", "two.py")]
    assert config.serve.tasks == (*beside, "twemoji2fluent")
    for stage in config.weights:
        config.weights[stage] = "shipped:any"
    monkeypatch.setattr(Translator, "methods", lambda self: ["sdedit"])
    page = Page(config, tmp_path)
    assert list(page.translators) == ["mine", "other", "two", "twemoji2fluent"]
    config.serve.tasks = ("nowhere",)
    with pytest.raises(ValueError, match="config.serve.tasks: the config 'nowhere' is not a file"):
        Page(config, tmp_path)


@pytest.mark.parametrize("host", ["no such host", "x" * 5000, "203.0.113.1"])
def test_an_address_that_cannot_be_used_is_told(task, tmp_path, host):
    config = task[1].copy_and_resolve_references()
    config.serve.host = host
    with pytest.raises(ValueError, match="config.serve.host or config.serve.port") as error:
        serve(config, tmp_path)
    assert one_sentence(str(error.value)) and len(str(error.value)) < 300


def test_programs_call_the_page_by_names(task, tmp_path):
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    config = task[1].copy_and_resolve_references()
    config.serve.port = port = free_port()
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.png")
    picture = handle_file(tmp_path / "a.png")
    blocks = serve(config, tmp_path, block=False)
    try:
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        ends = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        names = [p["parameter_name"] for p in ends["/translate"]["parameters"]]
        assert list(ends) == ["/translate"]
        assert names == ["picture", "task", "method", "settings", "steps", "seed"]
        made, metrics = client.predict(
            picture=picture,
            method="sdedit",
            settings={"start": 100},
            steps=3,
            api_name="/translate",
        )
        assert np.asarray(Image.open(made)).shape[:2] == (16, 16) and "SSIM" in metrics
        with pytest.raises(Exception, match="sdedit has no setting 'strat'; it has start"):
            client.predict(
                picture=picture, method="sdedit", settings={"strat": 1}, api_name="/translate"
            )
    finally:
        blocks.close()


@pytest.mark.slow
def test_the_page_in_a_browser(task, tmp_path):
    pytest.importorskip("gradio")
    browser = pytest.importorskip("playwright.sync_api")

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
