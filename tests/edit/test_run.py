"""`--mode=edit` on a model of a few thousand parameters: files, resume, devices, errors."""

import json
import shutil
import types

import numpy as np
import pytest
from helpers import files, one_sentence
from PIL import Image

from cdsde import load_config
from cdsde.data import content, inputs, write_png
from cdsde.edit import pipeline, text_directions, wording
from cdsde.edit import run as edit_run
from cdsde.runtime import records

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = "configs/edit_cat2dog.py"
CAPTION = "a photo of a cat sitting on the grass"


@pytest.fixture
def task(golden, tmp_path):
    """`task(**changes)`: a config for two pictures and the small model."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(2):
        coarse = np.random.default_rng(n).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((160, 140)).save(folder / f"{n}.png")

    def make(**changes):
        plain = {
            "model.path": golden / "latent" / "model",
            "sample.input": folder,
            "edit.caption": CAPTION,
            "data.image_size": 128,
            "edit.steps": 3,
        }
        more = {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config(CONFIG, plain | more)
        config.edit.update(iterations=2, num_patches=32, step=0.02)  # editors without them, too
        return config

    return make


def pixels(folder):
    return {p.name: np.asarray(Image.open(p), int) for p in sorted(folder.glob("?.png"))}


EDITORS = ("pix2pix_zerocon", "pix2pix_zero", "ddim", "pnp", "dds", "cds")
EDITORS += ("p2p", "edit_friendly", "ledits")


@pytest.mark.slow
@pytest.mark.parametrize("method", EDITORS)
def test_an_edit_from_folder_to_folder(task, tmp_path, on_devices, method):
    on_devices(1)
    config = task(method=method)
    folder = edit_run.edit(config, tmp_path)
    assert folder == tmp_path / "edits" / method
    made = pixels(folder)
    assert list(made) == ["0.png", "1.png"] and made["0.png"].shape == (128, 128, 3)
    back = pixels(folder / "reconstructions")
    assert all((made[name] != back[name]).any() for name in made)
    assert Image.open(folder / "sheet.png").size[0] > 3 * 128
    # Resumes: what is there stays, what is missing comes back as it was.
    (folder / "1.png").unlink()
    before = files(folder)
    edit_run.edit(config, tmp_path)
    assert files(folder)["0.png"] == before["0.png"]
    # In a batch of two over two devices it is the same picture.
    on_devices(2)
    config.sample.update(batch_size=2, output=str(tmp_path / "both"))
    both = pixels(edit_run.edit(config, tmp_path))
    for name, image in both.items():
        assert np.abs(image - made[name]).max() <= 1
    assert np.abs(pixels(folder)["1.png"] - made["1.png"]).max() <= 1
    config.sample.output, config.sample.seed = str(folder), config.sample.seed + 1
    with pytest.raises(ValueError, match="holds results made with other settings"):
        edit_run.edit(config, tmp_path)


def test_an_edit_is_known_by_the_content_and_the_caption_of_its_picture(task, tmp_path):
    config = task(edit__caption=None)
    folder, path = tmp_path / "pictures", tmp_path / "out" / "0.png"
    (folder / "0.txt").write_text("a photo of a cat")
    source = inputs.open_input(config)

    def done(config=config):
        return edit_run._finished(config, path, source, 0)

    assert not done()
    write_png(path, np.zeros((8, 8, 3), np.uint8))  # an earlier version's
    assert not done()  # each result has its reconstruction
    beside = tmp_path / "out" / "reconstructions" / "0.png"
    write_png(beside, np.zeros((8, 8, 3), np.uint8))
    assert done()
    for file in (path, beside):  # cut short by a full disk or a copy
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert not done()
        file.write_bytes(whole)
    told = {"source": content(source, 0), "caption": "a photo of a cat"}
    write_png(path, np.zeros((8, 8, 3), np.uint8), **told)
    assert done()
    (folder / "0.txt").write_text("a photo of a tiger")
    assert not done() and done(task(edit__caption=CAPTION))
    (folder / "0.txt").write_text("a photo of a cat")
    assert done()
    (folder / "1.png").rename(folder / "0.png")
    assert not done()


def test_what_says_how_to_use_the_weights_is_in_the_record(golden, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(golden / "latent" / "model", folder)
    before = pipeline._digest_of_files(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    assert pipeline._digest_of_files(folder) != before


@pytest.mark.parametrize(
    ("key", "value"), [("data.fit", "stretch"), ("data.filter", "bicubic"), ("edit.steps", 7)]
)
def test_edits_of_other_settings_do_not_pass_for_these(golden, tmp_path, key, value):
    model = pipeline.load(golden / "latent" / "model")
    first = edit_run.record_of(load_config("edit_cat2dog"), model)
    other = edit_run.record_of(load_config("edit_cat2dog", {key: value}), model)
    with pytest.raises(ValueError, match=f"{key} was .* and is {value}"):
        records.refuse_others(tmp_path, first, other, "take another")
    # Edits of earlier versions did not tell how their pictures were read.
    earlier = {k: v for k, v in first.items() if k != "data"}
    records.refuse_others(tmp_path, earlier, first, "take another")


@pytest.mark.slow
def test_what_is_missing_is_named(task, tmp_path, golden):
    def said(message, **changes):
        with pytest.raises(ValueError, match=message) as error:
            edit_run.edit(task(**changes), tmp_path)
        assert one_sentence(str(error.value))

    said("config.model.path is not given; --mode=edit needs it", model__path=None)
    for blank in ("", " ", "\t\n"):
        said("config.edit.target is not given", edit__target=blank)
        said("config.edit.source is not given", edit__source=blank)
        said("config.edit.caption is empty; .* None to unset it", edit__caption=blank)
    said("config.model.path=/nowhere is no folder", model__path="/nowhere")
    said("'/nowhere' does not exist", sample__input="/nowhere")
    said("config.data.image_size is 100; the model takes multiples of 64", data__image_size=100)
    said("say what the image shows with --config.edit.caption=TEXT", edit__caption=None)
    said("does not hold 'a horse', which is to become", edit__source="a horse", method="ddim")
    said("there is no file /nowhere.txt; a bank has", edit__source_bank="/nowhere.txt")
    said("which has no direction of sentences", edit__target_bank="a.txt", method="ddim")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        folder = tmp_path / f"without_{part}"
        shutil.copytree(golden / "latent" / "model", folder)
        shutil.rmtree(folder / part)
        said(f"without_{part}/{part}.* ", model__path=folder)
    with pytest.raises(ValueError, match="config.method is 'paint'; choose one of .*ddim"):
        task(method="paint")


def test_what_is_edited_lies_within_the_window(golden, caplog):
    model = pipeline.load(golden / "latent" / "model")
    tokenize = model.encoder.tokenize
    assert tokenize.length == 77 == model.encoder.module.text.positions

    def texts(caption, method="ddim", **changes):
        keys = {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config(CONFIG, {"method": method, **keys})
        return wording.texts_of(model, config, [wording.of_caption(config.edit, caption)])

    with caplog.at_level("WARNING"):
        texts(CAPTION)
        assert "are cut" not in caplog.text
        got = texts(f"a cat {'x ' * 90}")
    assert "1 of 1 texts are longer than the 77 tokens" in caplog.text
    assert (got.source != got.target).any()
    for method in ("ddim", "dds", "pix2pix_zerocon"):
        with pytest.raises(ValueError, match="reads 77 tokens, .* 'cat'.* shorten the text") as e:
            texts("x " * 90 + "a cat", method)
        assert one_sentence(str(e.value))
    # The last place within the window, and the first beyond it.
    one = tokenize.count("x x") - tokenize.count("x")
    most = (77 - tokenize.count("cat")) // one
    texts("x " * most + "cat")
    with pytest.raises(ValueError, match="shorten the text"):
        texts("x " * (most + 1) + "cat")
    with pytest.raises(ValueError, match="which is edited, comes after them"):
        texts("x " * most + "cat", edit__target="a large black dog")
    for key in ("edit__source", "edit__target"):  # LEDITS++ reads the words alone
        texts("a cat", "ledits", **{key: "x " * (most - 1) + "cat"})
        with pytest.raises(ValueError, match="'x x x .* comes after them; shorten the text"):
            texts("a cat", "ledits", **{key: "x " * 90 + "a cat"})
    with pytest.raises(ValueError) as e:  # texts are cut off in messages
        texts("a cat", "ledits", edit__target="x" * 5000)
    assert one_sentence(str(e.value)) and len(str(e.value)) < 400
    long = ("x " * 90 + "{}",)
    with pytest.raises(ValueError, match="which is edited, comes after them"):
        texts("a cat", "pix2pix_zero", edit__templates=long)


@pytest.mark.slow
def test_broken_images_are_listed_once_the_others_are_edited(task, tmp_path, on_devices):
    on_devices(1)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"")
    config = task(method="ddim", data__image_size=64)
    with pytest.raises(ValueError, match=r"1 of 3 images have no result.*broken\.png' cannot be"):
        edit_run.edit(config, tmp_path)
    assert list(pixels(tmp_path / "edits" / "ddim")) == ["0.png", "1.png"]
    assert (tmp_path / "edits" / "ddim" / "sheet.png").exists()


def test_a_tokenizer_of_another_text_encoder_is_named(tmp_path, golden):
    shutil.copytree(golden / "latent" / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    last = max(vocabulary, key=lambda token: vocabulary[token])
    path.write_text(json.dumps(vocabulary | {last: 40_000}))
    with pytest.raises(ValueError, match=r"vocab.json has ids up to 40000, and .* knows \d+") as e:
        pipeline.load(tmp_path / "model")
    assert one_sentence(str(e.value))


def test_a_batch_is_no_larger_than_the_images_left(task, tmp_path, on_devices, monkeypatch):
    on_devices(1)
    sizes = []
    monkeypatch.setattr(edit_run, "eval_batches", lambda *_, **given: sizes.append(given) or [])
    monkeypatch.setattr(pipeline, "program", lambda model, config: lambda: None)
    config = task(method="ddim", sample__batch_size=20_000_000)
    source, model = inputs.open_input(config), types.SimpleNamespace(params={})
    edit_run._edit(config, model, source, tmp_path, source.ids, {}, None, [0, 1])
    assert [given["batch_size"] for given in sizes] == [2]
    config.sample.batch_size = 1
    edit_run._edit(config, model, source, tmp_path, source.ids, {}, None, [0, 1])
    assert sizes[1]["batch_size"] == 1


def test_words_are_swapped():
    assert wording.swapped("woman or man", "man", "child") == "woman or child"
    assert wording.swapped("A cat on grass", "a cat", "a dog") == "a dog on grass"
    for blank in ("", " "):
        with pytest.raises(ValueError, match="config.edit.source or config.edit.target is blank"):
            wording.bare(blank)
    assert wording.swapped("the black cat sleeps", "a cat", "a dog") == "the black dog sleeps"


def test_banks(tmp_path):
    cat, dog = text_directions.bank("a cat"), text_directions.bank("a dog")
    assert len(set(cat)) == len(cat) > 20
    assert [s.replace("cat", "dog") for s in cat] == dog
    braces = text_directions.bank("a cat", ("{} {x}", "{}, {}", "{"))
    assert braces == ["a cat {x}", "a cat, a cat", "{"]
    path = tmp_path / "cat.txt"
    path.write_text("a cat\n\n  the cat sleeps \n")
    assert text_directions.read_bank(path) == ["a cat", "the cat sleeps"]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="has no sentence; a bank has one a line"):
        text_directions.read_bank(path)


def test_captions_of_a_captioner(task, tmp_path, golden):
    folder = tmp_path / "blip"
    shutil.copytree(golden / "latent" / "blip", folder)
    with pytest.raises(ValueError, match="there is no .*vocab.txt"):
        edit_run.captions_of(task(edit__caption=None, model__captioner=folder), None, [])
    vocabulary = [f"word{n}" for n in range(97)]
    vocabulary[10:13] = ["a", "picture", "of"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = task(edit__caption=None, model__captioner=folder)
    source = inputs.open_input(config)
    captions = edit_run.captions_of(config, source, [0])
    assert list(captions) == ["0.png"] and captions["0.png"].startswith("word")
    assert json.dumps(captions)
