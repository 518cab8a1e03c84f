"""PIE-Bench's folder and protocol, on three images made here."""

import csv
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence
from PIL import Image
from safetensors.numpy import save_file

from cdsde import load_config
from cdsde.config import unused
from cdsde.data import captions, content, decode, inputs, open_domain, tokenizer, write_png
from cdsde.edit import pipeline, wording
from cdsde.edit import run as edit_run
from cdsde.evaluate import edits, extractors
from cdsde.networks import features
from cdsde.weights.torch import convert

pytestmark = pytest.mark.usefixtures("compile_quickly")
CONFIG = "configs/pie_bench.py"
BOX = [512 * row + 128 for row in range(128, 384)]  # starts of the rows of a centred square
ENTRIES = {
    "000000000000": (
        "a [cat] on grass",
        "a [dog] on grass",
        "1",
        [n for s in BOX for n in (s, 256)],
        "cat dog",
    ),
    "111000000001": ("a mountain", "a mountain with a [red flag]", "2", [0, 512 * 10], ""),
    "922000000002": (
        "a photo of a house",
        "a [watercolor] of a [ house]",
        "9",
        [0, 512 * 512],
        ["house", "picture"],
    ),
}


@pytest.fixture
def root(tmp_path):
    """A folder of PIE-Bench's layout."""
    folder, entries = tmp_path / "pie", {}
    for n, (key, (caption, edited, kind, mask, words)) in enumerate(ENTRIES.items()):
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
            "blended_word": words,
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
    assert [source.blended(n) for n in range(3)] == [("cat", "dog"), (), ("house", "picture")]
    assert source[1]["image"].shape == (512, 512, 3) and len(content(source, 1)) == 32
    square = source.mask(0)
    assert square[128:384, 128:384].all() and square.sum() == 256**2 + 4 * 511
    assert square[0].all() and square[:, -1].all()
    assert source.mask(1)[:10].all() and not source.mask(1)[11, 1:-1].any()
    assert source.mask(2).all()
    np.testing.assert_array_equal(source.mask(0, 1024), square.repeat(2, 0).repeat(2, 1))
    for size in (512, 256, 64, 96, 500):
        half, border = source.mask(0, size), source.mask(1, size)
        # The border is there at every size, a pixel wide.
        assert half[[0, -1]].all() and half[:, [0, -1]].all()
        first, last = size // 4, -(-3 * size // 4)
        inside = np.zeros((size, size), bool)
        inside[first:last, first:last] = True
        inside[[0, -1]] = inside[:, [0, -1]] = True
        np.testing.assert_array_equal(half, inside)
        assert border[: -(-10 * size // 512)].all()
        assert not border[-(-10 * size // 512) : -1, 1:-1].any()
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
    for words in ("cat", ["cat", 3], ["cat", " "], 7):
        entries["111000000001"]["blended_word"] = words
        path.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match="of '111000000001', .* nor a word of each") as error:
            open_domain(root, "all", "test")
        assert one_sentence(str(error.value))
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


def tokens(model, text, word):
    return tokenizer.word_positions(model.encoder.tokenize, text, word)


def test_prompt_to_prompt_is_that_of_the_benchmark(root, model):
    """Words are refined, the second blended word counts twice, and both tell the place."""
    config = settings(root)
    e = config.edit
    assert (e.cross_attention, e.attention, e.attention_side, e.blend) == (0.4, 0.6, 32, 0.3)
    source = inputs.open_input(config)

    def words(config):
        said = edit_run.wordings_of(config, source, [0, 1, 2])
        return wording.texts_of(model, config, list(said.values())).words

    found, before, after = words(config), "a cat on grass", "a dog on grass"
    cat, dog = tokens(model, before, "cat"), tokens(model, after, "dog")
    np.testing.assert_array_equal(found.places[0], [cat, dog])
    np.testing.assert_array_equal(found.kept[0], 2.0 * dog)
    assert (found.shares[0][:, dog] == 0).all() and found.shares[0].max() == 1
    # Without blended words nothing is reweighted, and every place is edited.
    assert found.places[1].all() and found.kept[1].max() == found.shares[1].max() == 1
    assert (
        found.kept[1].sum() == tokens(model, "a mountain with a red flag", "with a red flag").sum()
    )
    # A word that its text does not hold is nowhere.
    np.testing.assert_array_equal(found.places[2][0], tokens(model, "a photo of a house", "house"))
    assert not found.places[2][1].any() and found.kept[2].max() == 1
    # Elsewhere the words that are exchanged give their attention.
    e.update(exchange="auto", reweight=1.0)
    replaced = words(config)
    assert replaced.kept[0].sum() == 0 and (replaced.shares[0][:, dog].sum(0) == 1).all()


@pytest.mark.parametrize("method", ["ddim", "pnp", "pix2pix_zero", "ledits"])
def test_another_editor_does_not_take_over_the_keys_of_prompt_to_prompt(root, method):
    e = load_config(CONFIG, {"data.root": root, "method": method}).edit
    assert e.strength == 1 and (method != "pnp" or e.attention == 0.5)
    config = settings(root, method=method, edit__blend=0.2)
    with pytest.raises(ValueError, match="config.edit.blend is 0.2, which has no effect where"):
        unused.check(config, ["edit.blend"])


@pytest.mark.parametrize(
    ("key", "beside"),
    [
        ("exchange", "cross_attention"),
        ("reweight", "cross_attention"),
        ("attention_side", "attention"),
    ],
)
def test_without_the_sources_attention_its_keys_have_no_effect(root, key, beside):
    unused.check(settings(root), [f"edit.{key}"])
    config = settings(root, **{f"edit__{beside}": 0.0})
    with pytest.raises(ValueError, match=f"config.edit.{key} is .* where config.edit.{beside} is"):
        unused.check(config, [f"edit.{key}"])


def test_the_background_is_measured_where_there_is_one(root, golden, tmp_path):
    config = settings(root)
    source = inputs.open_input(config)
    assert edit_run.chosen_images(config, source) == [0, 1, 2]
    folder = tmp_path / "edits" / "p2p"
    for j, name in enumerate(source.ids):
        picture = inputs.reading(config)(source[j]["image"])
        changed = np.where(source.mask(j, 64)[..., None], 255 - picture, picture)
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
        score_of, _ = edits._clip(str(clip))
        picture = decode(folder / f"{name}.png")
        whole = float(score_of({j: source.edit(j)[1]})(picture[None], np.array([j]))[0])
        assert float(table[j]["CLIP score"]) == pytest.approx(whole, abs=1e-5)
        picture = inputs.reading(config)(source[j]["image"])
        before = float(score_of({j: source.caption(j)})(picture[None], np.array([j]))[0])
        assert float(table[j]["CLIP score of the source"]) == pytest.approx(before, abs=1e-5)
        edited = float(table[j]["CLIP score of the edited region"])
        assert (edited == pytest.approx(whole, abs=1e-5)) == (j == 2)


def small_dino(name, path):
    """A network of DINO's structure with random weights, in place of the published one."""
    network = features.DINO(width=12, depth=1, heads=2, patch=16, side=32)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    run = jax.jit(lambda params, x: network.apply(params, x.astype(jnp.float32) / 255))
    return extractors.Extractor(name, run, params, str(path))


@pytest.mark.slow
def test_the_background_counts_for_all_pixels_of_the_image(root, tmp_path, monkeypatch):
    """As published: with the object black, over the whole image; by hand, and with networks."""
    network = features.LPIPSSqueeze()
    pictures = jnp.zeros((1, 64, 64, 3))
    params = jax.jit(network.init)(jax.random.key(1), pictures, pictures)
    weights = convert.to_state_dict(params, "lpips_squeeze")
    weights = {re.sub(r"^slice\d", "features", k): v for k, v in weights.items() if "slice" in k}
    save_file(weights, tmp_path / "squeeze.safetensors")
    config = settings(root, eval__lpips_squeeze=tmp_path / "squeeze.safetensors")
    config.eval.dino = "small"
    lpips = extractors.load("lpips_squeeze", config.eval.lpips_squeeze)
    dino = small_dino("dino_vitb8", "small")
    load = extractors.load
    choose = {"dino_vitb8": small_dino}
    monkeypatch.setattr(extractors, "load", lambda name, path: choose.get(name, load)(name, path))
    source, folder, both = inputs.open_input(config), tmp_path / "edits" / "p2p", []
    for j, name in enumerate(source.ids):
        picture = inputs.reading(config)(source[j]["image"])
        other = np.where(picture < 128, picture + 10, picture - 10)  # by 10 in the left half
        changed = np.where(np.arange(64)[:, None] < 32, other, picture)
        # The object is another one altogether.
        changed = np.where(source.mask(j, 64)[..., None], 255 - picture, changed).astype(np.uint8)
        write_png(folder / f"{name}.png", changed)
        write_png(folder / "reconstructions" / f"{name}.png", picture)
        both.append((changed, picture))
    row = edits.evaluate_edits(config, tmp_path)["p2p"]
    assert row["BG-MSE"]["images"] == 2 and row["structure distance"]["images"] == 3
    with (tmp_path / "eval" / "p2p" / "per_image.csv").open() as file:
        table = [{k: float(v) for k, v in list(r.items())[1:]} for r in csv.DictReader(file)]
    # The left half without its border: less a quarter of the picture, or the first two rows.
    for j, count in enumerate((31 * 62 - 16 * 32, 31 * 61)):
        mse = count * (10 / 255) ** 2 / 64**2
        assert table[j]["BG-MSE"] == pytest.approx(mse, rel=1e-6)
        assert table[j]["BG-PSNR"] == pytest.approx(-10 * np.log10(mse), rel=1e-5)
        black = [x * ~source.mask(j, 64)[..., None] for x in both[j]]
        distance = lpips(*(x[None] for x in black))["distance"][0]
        assert table[j]["BG-LPIPS-Squeeze"] == pytest.approx(float(distance), rel=1e-4)
        assert 0 < table[j]["BG-LPIPS-Squeeze"] < table[j]["LPIPS-Squeeze to source"]
    assert np.isnan(table[2]["BG-MSE"]) and np.isnan(table[2]["BG-LPIPS-Squeeze"])
    for numbers, pair in zip(table, both, strict=True):
        keys = [np.float64(dino(x[None])["keys"][0]) for x in pair]
        unit = [k / np.linalg.norm(k, axis=1, keepdims=True) for k in keys]
        wanted = np.mean((unit[0] @ unit[0].T - unit[1] @ unit[1].T) ** 2)
        assert numbers["structure distance"] == pytest.approx(wanted, rel=1e-3) and wanted > 0


@pytest.mark.slow
def test_it_is_edited_and_noticed_when_its_words_change(root, golden, tmp_path, on_devices):
    on_devices(1)
    model = {"model__path": golden / "latent" / "model", "edit__steps": 3}
    model["edit__inversion"] = "null_text"
    config = settings(root, **model)
    folder = edit_run.edit(config, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*0*.png")}
    assert len(before) == 3
    path = root / "mapping_file.json"
    path.write_text(path.read_text().replace("[red flag]", "[blue flag]"))
    path.write_text(path.read_text().replace("cat dog", "grass grass"))
    edit_run.edit(config, tmp_path)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("*0*.png")}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"000000000000.png", "111000000001.png"}
    with pytest.raises(ValueError, match="has a caption for each image; set config.edit.caption"):
        edit_run.edit(settings(root, **model, edit__caption="a cat"), tmp_path)
