"""PIE-Bench's folder and protocol, on three images made here."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import one_sentence
from PIL import Image

from cdsde import load_config
from cdsde.data import captions, content, decode, inputs, open_domain, resize, write_png
from cdsde.edit import pipeline, wording
from cdsde.edit import run as edit_run
from cdsde.evaluate import edits

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = "configs/pie_bench.py"
BOX = [512 * row + 128 for row in range(128, 384)]  # starts of the rows of a centred square
ENTRIES = {
    "000000000000": (
        "a [cat] on grass",
        "a [dog] on grass",
        "1",
        [n for s in BOX for n in (s, 256)],
    ),
    "111000000001": ("a mountain", "a mountain with a [red flag]", "2", [0, 512 * 10]),
    "922000000002": ("a photo of a house", "a [watercolor] of a [ house]", "9", [0, 512 * 512]),
}


@pytest.fixture
def root(tmp_path):
    """A folder of PIE-Bench's layout."""
    folder, entries = tmp_path / "pie", {}
    for n, (key, (caption, edited, kind, mask)) in enumerate(ENTRIES.items()):
        path = folder / "annotation_images" / f"{kind}_kind" / f"{key}.jpg"
        path.parent.mkdir(parents=True)
        coarse = np.random.default_rng(n).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((512, 512)).save(path)
        entries[key] = {
            "image_path": f"{kind}_kind/{key}.jpg",
            "original_prompt": caption,
            "editing_prompt": edited,
            "editing_type_id": kind,
            "editing_instruction": "Change it",
            "blended_word": "",
            "mask": mask,
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder


def test_each_image_has_its_words_and_its_place(root):
    source = open_domain(root, "all", "test")
    assert source.ids == list(ENTRIES)
    assert captions(source) == ["a cat on grass", "a mountain", "a photo of a house"]
    assert source.edit(0) == ("a cat on grass", "a dog on grass", ("cat",), ("dog",))
    assert source.edit(1)[2:] == ((), ("red flag",))
    assert source.edit(2)[1:] == ("a watercolor of a  house", (), ("watercolor", "house"))
    assert source[1]["image"].shape == (512, 512, 3) and len(content(source, 1)) == 32
    square = source.mask(0)
    assert square[128:384, 128:384].all() and square.sum() == 256**2 + 4 * 511
    assert square[0].all() and square[:, -1].all()
    assert source.mask(1)[:10].all() and not source.mask(1)[11, 1:-1].any()
    assert source.mask(2).all()
    assert open_domain(root, "9", "test").ids == ["922000000002"]


def test_what_is_wrong_with_the_folder_is_said(root):
    for args, message in (
        (("dog", "test"), "has no editing type 'dog': set data.source to one of .*all"),
        (("all", "train"), "has no split 'train'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            open_domain(root, *args)
        assert one_sentence(str(error.value))
    path = root / "mapping_file.json"
    entries = json.loads(path.read_text())
    for field, value in (("mask", [1]), ("mask", None), ("editing_prompt", None)):
        wrong = json.loads(json.dumps(entries))
        wrong["111000000001"][field] = value
        if value is None:
            del wrong["111000000001"][field]
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"'111000000001'.* copy it again") as error:
            open_domain(root, "all", "test")
        assert field in str(error.value)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        open_domain(root, "all", "test")


@pytest.fixture(scope="module")
def model(golden):
    return pipeline.load(golden / "latent" / "model")


def settings(root, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(CONFIG, {"data.root": root, "data.image_size": 64, **changes})


@pytest.mark.parametrize("method", ["ddim", "p2p", "ledits", "pix2pix_zero"])
def test_texts_are_those_of_each_image(root, model, method):
    config = settings(root, method=method, edit__inversion="next")
    source = inputs.open_input(config)
    words = edit_run.wordings_of(config, source, [0, 1, 2])
    texts = wording.texts_of(model, config, list(words.values()))
    encode, n = model.encoder, 1
    if method == "ledits":
        np.testing.assert_array_equal(texts.target[n], encode(["red flag"])[0])
        np.testing.assert_array_equal(texts.words[1].sum(-1) > 0, [True, False, False])
        assert texts.words[0][n].sum() == encode.tokenize.count("red flag") - 2
    else:
        np.testing.assert_array_equal(texts.source[n], encode(["a mountain"])[0])
        wanted = encode(["a mountain with a red flag"])[0]
        np.testing.assert_allclose(texts.target[n], wanted, atol=1e-5)
    if method == "p2p":
        shares, kept = texts.words
        new = encode.tokenize.count("a mountain with a red flag") - encode.tokenize.count(
            "a mountain"
        )
        np.testing.assert_array_equal(kept.sum(-1)[:2], [0, new])
        np.testing.assert_array_equal(shares[0], np.eye(77))


def test_the_background_is_measured_where_there_is_one(root, golden, tmp_path):
    config = settings(root)
    source = inputs.open_input(config)
    assert edit_run.chosen_images(config, source) == [0, 1, 2]
    folder = tmp_path / "edits" / "p2p"
    for j, name in enumerate(source.ids):
        picture = inputs.reading(config)(source[j]["image"])
        mask = resize(np.repeat(np.uint8(255) * source.mask(j)[..., None], 3, -1), 64, "bilinear")
        changed = np.where(mask > 127, 255 - picture, picture)
        write_png(folder / f"{name}.png", changed)
        write_png(folder / "reconstructions" / f"{name}.png", picture)
    clip = tmp_path / "clip"
    shutil.copytree(golden / "latent" / "clip", clip)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(golden / "latent" / "model" / "tokenizer" / name, clip)
    config.eval.clip = str(clip)
    row = edits.evaluate_edits(config, tmp_path)["p2p"]
    assert row["BG-MSE"] == {"value": 0, "low": 0, "high": 0, "images": 2}
    assert row["BG-PSNR"]["value"] == 100 and row["BG-SSIM"]["value"] == pytest.approx(1)
    assert row["MSE to source"]["images"] == 3 and row["MSE to source"]["value"] > 0
    assert not any("direction" in name for name in row)
    # CLIP compares with each image's own text, whole and where all but the object is black.
    with (tmp_path / "eval" / "p2p" / "per_image.csv").open() as file:
        table = list(csv.DictReader(file))
    for j, name in enumerate(source.ids):
        score, _ = edits._clip(str(clip), {j: source.edit(j)[1]})
        picture = decode(folder / f"{name}.png")
        whole = float(score(picture[None], np.array([j]))[0])
        assert float(table[j]["CLIP score"]) == pytest.approx(whole, abs=1e-5)
        edited = float(table[j]["CLIP score of the edited region"])
        assert (edited == pytest.approx(whole, abs=1e-5)) == (j == 2)


@pytest.mark.slow
def test_it_is_edited_and_noticed_when_its_words_change(root, golden, tmp_path, on_devices):
    on_devices(1)
    model = {"model__path": golden / "latent" / "model", "edit__steps": 3}
    model["edit__inversion"] = "null_text"
    config = settings(root, **model, edit__strength=2.0)
    folder = edit_run.edit(config, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*0*.png")}
    assert len(before) == 3
    path = root / "mapping_file.json"
    path.write_text(path.read_text().replace("[red flag]", "[blue flag]"))
    edit_run.edit(config, tmp_path)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("*0*.png")}
    assert {name for name in before if before[name] != after[name]} == {"111000000001.png"}
    with pytest.raises(ValueError, match="has a caption for each image; set config.edit.caption"):
        edit_run.edit(settings(root, **model, edit__caption="a cat"), tmp_path)
