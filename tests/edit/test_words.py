"""A model of images and captions: trained, written as a folder, edited with, evaluated."""

import json
import shutil
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence, read_json
from PIL import Image
from safetensors.numpy import save_file

from cdsde import load_config, metrics
from cdsde.data import FilesSource, captions, inputs, open_domain, tokenizer
from cdsde.edit import pipeline, text_directions, wording
from cdsde.edit import run as edit_run
from cdsde.editing import attention_masks, ddim, editors
from cdsde.evaluate import edits, translations
from cdsde.networks import features
from cdsde.train import text_to_image
from cdsde.train.loop import train
from cdsde.weights import diffusers, exchange
from cdsde.weights.torch import convert

pytestmark = pytest.mark.usefixtures("compile_quickly")

TINY = {
    "data.image_size": 16,
    "autoencoder.widths": (8, 16),
    "latent.widths": (16, 32),
    "latent.heads": 2,
    "latent.text_width": 16,
    "latent.vocabulary": 400,
    "train.autoencoder.steps": 3,
    "train.latent.steps": 3,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "model.path": None,
    "edit.steps": 3,
    "edit.source": "face",
    "edit.target": "heart",
    "sample.limit": 3,
    "edit.regularise": False,  # it divides by the variance of noise that this network barely tells
    "edit.num_patches": 8,
}


def test_metrics_of_edits(golden):
    v = np.load(golden / "latent" / "metrics.npz")
    a, b = v["keys_a"][None], v["keys_b"][None]
    np.testing.assert_allclose(metrics.self_similarity(a)[0], v["self_similarity_a"], atol=2e-6)
    distance = metrics.structure_distance(a, b)[0]
    np.testing.assert_allclose(distance, v["structure_distance"], rtol=1e-5)
    assert metrics.structure_distance(a, a)[0] == 0
    x, y = np.eye(3, 4), np.array([[2.0, 0, 0, 0], [3, 4, 0, 0], [0, 0, -1, 0]])
    np.testing.assert_allclose(metrics.clip_score(x, y), [1, 0.8, -1], rtol=1e-6)
    alike = metrics.directional_similarity(np.eye(3, 4), np.zeros((3, 4)), np.array([3.0, 4, 0, 0]))
    np.testing.assert_allclose(alike, [0.6, 0.8, 0], rtol=1e-6)
    assert metrics.directional_similarity(x, x, x[0]).tolist() == [0, 0, 0]
    picture = np.full((1, 4, 4, 3), 7, np.uint8)
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2] = True
    kept = metrics.background(picture, mask)
    assert kept.dtype == np.uint8 and (kept[0, :2] == 0).all() and (kept[0, 2:] == 7).all()


def vit(width=12, depth=2, patch=4, side=8, seed=0):
    """A state dict of DINO's names."""
    r = np.random.default_rng(seed)

    def draw(*shape):
        return r.normal(0, 0.3, shape).astype(np.float32)

    tokens = (side // patch) ** 2 + 1
    found = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, tokens, width)}
    found |= {"patch_embed.proj.weight": draw(width, 3, patch, patch)}
    found |= {"patch_embed.proj.bias": draw(width), "norm.weight": draw(width)}
    found["norm.bias"] = draw(width)
    for n in range(depth):
        shapes = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        for name, shape in shapes.items():
            found[f"blocks.{n}.{name}.weight"] = draw(*shape)
            found[f"blocks.{n}.{name}.bias"] = draw(shape[0])
        for name in ("norm1", "norm2"):
            found[f"blocks.{n}.{name}.weight"] = 1 + draw(width)
            found[f"blocks.{n}.{name}.bias"] = draw(width)
    return found


def test_dino_is_pytorchs_transformer():
    torch = pytest.importorskip("torch")
    weights, width, heads = vit(), 12, 3
    fields = dict(width=width, depth=2, heads=heads, patch=4, side=8)
    apply, params = convert.from_state_dict(weights, "dino_vitb8", **fields)
    x = np.random.default_rng(1).random((2, 8, 8, 3), np.float32)
    ours = apply(params, jnp.asarray(x))

    w = {k: torch.tensor(v) for k, v in weights.items()}
    mean, std = (torch.tensor(v) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = ((torch.tensor(x) - mean) / std).permute(0, 3, 1, 2)
    h = torch.nn.functional.conv2d(
        pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4
    )
    h = torch.cat([w["cls_token"].expand(2, 1, width), h.flatten(2).transpose(1, 2)], 1)
    h = h + w["pos_embed"]
    for n in range(2):
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        )
        own = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        layer.load_state_dict(
            {a + k: w[f"blocks.{n}.{b}{k}"] for a, b in own.items() for k in ("weight", "bias")}
        )
        normed = layer.norm1(h)
        qkv = normed @ w[f"blocks.{n}.attn.qkv.weight"].T + w[f"blocks.{n}.attn.qkv.bias"]
        keys = qkv[..., width : 2 * width]
        h = layer.train()(h)
    h = torch.nn.functional.layer_norm(h, (width,), w["norm.weight"], w["norm.bias"], 1e-6)
    np.testing.assert_allclose(ours["keys"], keys.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(ours["class"], h[:, 0].detach().numpy(), atol=2e-5)


def test_full_dino_takes_the_published_names():
    network = features.DINO()
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    names = helpers.published_shapes(shapes, "dino_vitb8")
    assert names["blocks.11.attn.qkv.weight"] == (2304, 768)
    assert names["pos_embed"] == (1, 785, 768)
    assert names["patch_embed.proj.weight"] == (768, 3, 8, 8)
    assert sum(np.prod(s) for s in names.values()) == 85_807_872  # published: 85.8 M


def test_captions(tmp_path):
    source = open_domain("emoji", "twemoji", "test")
    texts = captions(source)
    assert texts[source.ids.index("1f600")] == "twemoji grinning face"
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    source = open_domain(tmp_path, "cat", "train")
    with pytest.raises(ValueError, match=r"a\.txt is missing or empty: it says what the image"):
        captions(source)
    (folder / "a.txt").write_text(" a black cat \n")
    assert captions(source) == ["a black cat"]
    (folder / "a.txt").write_text("a black cat\n\nan animal, black\n")
    assert captions(source) == ["a black cat"] and source.captions(0)[1] == "an animal, black"
    assert captions(source, wanted=wording.holds("animal")) == ["an animal, black"]


def test_training_draws_from_all_captions(tmp_path):
    for n, text in enumerate(("a cat\nan animal\na pet", "a dog")):
        folder = tmp_path / "train" / "pet"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(text)
    changes = {"data.root": str(tmp_path), "data.source": "pet", "data.target": "pet"}
    config = load_config("emoji_words", changes)
    (ids,) = text_to_image.labels(config)
    assert ids.shape == (2, 3, config.latent.text_length)
    assert len(np.unique(ids[0], axis=0)) == 3 and len(np.unique(ids[1], axis=0)) == 1


def test_texts_are_utf8(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source, path = FilesSource(tmp_path), tmp_path / "a.txt"
    for read in (lambda: source.caption(0), lambda: text_directions.read_bank(path)[0]):
        path.write_text("un café", encoding="utf-8-sig")
        assert read() == "un café"
        path.write_text("un café", encoding="latin-1")
        with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8 .*; save it as") as e:
            read()
        assert one_sentence(str(e.value)) and not isinstance(e.value, UnicodeError)


@pytest.fixture
def tokens(golden, tmp_path):
    """`tokens(name, content)`: what is told of a tokenizer with a file of its own."""
    folder = golden / "latent" / "model" / "tokenizer"
    plain = read_json(folder / "tokenizer_config.json")

    def told(name, content):
        shutil.copytree(folder, tmp_path / "t", dirs_exist_ok=True)
        if isinstance(content, dict) and name == "tokenizer_config.json":
            content = plain | content
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "t" / name).write_bytes(text)
        try:
            tokenizer.load(tmp_path / "t")
        except ValueError as error:
            assert one_sentence(str(error)) and str(tmp_path / "t") in str(error), error
            return str(error)
        finally:
            shutil.rmtree(tmp_path / "t")
        return None

    return told


PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"do_lower_case": False}, "do_lower_case to false"),
        ({"tokenizer_class": "T5Tokenizer"}, 'tokenizer_class to "T5Tokenizer"'),
        ({"bos_token": "<s>"}, 'has as bos_token "<s>"'),
        ({"eos_token": {"content": "</s>", **PLAIN}}, 'has as eos_token "</s>"'),
        ({"unk_token": "<unk>"}, 'has as unk_token "<unk>"'),
        ({"pad_token": {**PLAIN, "content": "!", "lstrip": True}}, "lstrip to true"),
        ({"add_prefix_space": True}, "add_prefix_space to true"),
        ({"padding_side": "left"}, 'padding_side to "left"'),
        ({"additional_special_tokens": ["<cat>"]}, 'in additional_special_tokens "<cat>"'),
        ({"extra_special_tokens": {"image": "<i>"}}, 'in extra_special_tokens "<i>"'),
        ({"added_tokens_decoder": {"600": {"content": "<cat>", **PLAIN}}}, "gives the id 600 to"),
        ({"spoken": True}, "spoken to true, a field that is not known"),
        ({"model_max_length": "77"}, "model_max_length"),
        # What publishers write, and changes nothing.
        ({"clean_up_tokenization_spaces": True, "truncation": True, "max_length": 77}, None),
        ({"name_or_path": "x", "special_tokens_map_file": "y", "__type": "AddedToken"}, None),
        ({"additional_special_tokens": [], "extra_special_tokens": {}}, None),
        ({"pad_token": "!", "tokenizer_class": "CLIPTokenizerFast"}, None),
    ],
)
def test_fields_of_a_tokenizer_are_honoured_or_named(tokens, fields, named):
    told = tokens("tokenizer_config.json", fields)
    assert told is None if named is None else named in told


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("added_tokens.json", {"<cat>": 600}, 'adds the token "<cat>"'),
        ("added_tokens.json", {}, None),
        ("special_tokens_map.json", {"bos_token": "<s>"}, 'has as bos_token "<s>"'),
        ("special_tokens_map.json", {"pad_token": ["!"]}, "pad_token ['!'], which is not in"),
        ("special_tokens_map.json", b"{", "is not readable JSON"),
        ("tokenizer_config.json", b"[]", "no JSON object"),
        ("vocab.json", b"\xff", "is not readable JSON"),
        ("vocab.json", [], "no JSON object"),
        ("vocab.json", {"<|startoftext|>": 0, "<|endoftext|>": 0}, "no id of their own"),
        ("vocab.json", {"<|startoftext|>": 0, "<|endoftext|>": "1"}, "no id of their own"),
        ("vocab.json", {"<|startoftext|>": 0, "<|endoftext|>": 1}, "is not in vocab.json"),
        ("vocab.json", {"<|startoftext|>": 0, "<|endoftext|>": 1, "\ud800": 2}, "that are no text"),
        ("merges.txt", b"#version: 0.2\n", "makes 0 of the "),
        ("merges.txt", b"", "makes 0 of the "),
        ("merges.txt", b"caf\xe9 x", "merges.txt is no text in UTF-8"),
        ("merges.txt", b"zz yy", "merges.txt has 'zz', which is not in vocab.json"),
    ],
)
def test_damaged_files_of_a_tokenizer_are_named(tokens, name, content, named):
    told = tokens(name, content)
    assert told is None if named is None else named in told


def test_a_tokenizer_learned_and_kept(tmp_path):
    texts = ["twemoji smiling face", "twemoji crying face", "red heart"]
    learned = tokenizer.learn(texts, 60, length=12)
    tokenizer.save(tmp_path, learned)
    loaded = tokenizer.load(tmp_path)
    told = [*texts, "a Crying  HEART", ""]
    np.testing.assert_array_equal(learned(told), loaded(told))
    assert loaded(told).shape == (5, 12) and loaded.end == 59
    assert (tokenizer.learn(texts, 60, length=12)(told) == learned(told)).all()
    for size in (0, 1, 2, 10):
        with pytest.raises(ValueError, match="config.latent.vocabulary is .* characters; set it"):
            tokenizer.learn(texts, size, length=12)
    where = tokenizer.word_positions(learned, "twemoji smiling face", "smiling")
    ids = learned(["twemoji smiling face"])[0]
    assert list(ids[where]) == learned.words.encode("smiling").ids
    with pytest.raises(ValueError, match="does not hold the word 'sad'"):
        tokenizer.word_positions(learned, "twemoji smiling face", "sad")


def test_maps_become_masks():
    maps = np.array([[[0.0, 1.0], [0.2, 0.4]]])
    mask = attention_masks.enlarged(maps, 4)
    assert mask.shape == (1, 4, 4) and mask[0, :2, 2:].all() and not mask[0, :2, :2].any()
    assert mask[0, 2:, 2:].all() and not mask[0, 2:, :2].any()


@pytest.mark.parametrize(("latent", "side"), [(8, 4), (32, 16), (48, 12), (64, 16)])
def test_masks_take_the_largest_maps_within_sixteen(latent, side):
    ladder = ddim.Ladder(*np.array([[1], [1], [2]]))

    maps = {n: jnp.full((1, 2, n * n, 3), 1.0) for n in (latent // 2, latent // 4, latent // 8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editors, "observe", lambda unet, x, t, text: (x, maps, {}))
        found = attention_masks.of_words(
            None, jnp.zeros((1, latent, latent, 4)), ladder, None, jnp.ones((1, 3), bool)
        )
    assert found.shape == (1, side, side)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work folder with a model trained for a moment, and its config."""
    workdir = tmp_path_factory.mktemp("words")
    config = load_config("configs/emoji_words.py", TINY)
    train(config, workdir)
    config.model.path = str(exchange.export_weights(_of_latent(config), workdir))
    return workdir, config


def _of_latent(config):
    config = config.copy_and_resolve_references()
    config.export.stage = "latent"
    return config


@pytest.mark.slow
def test_it_trains_and_is_written_like_any_other_model(trained):
    _, config = trained
    loaded = pipeline.load(config.model.path)
    assert loaded.unet.widths == (16, 32) and loaded.encoder.tokenize.length == 16
    assert 0.05 < loaded.factor < 50
    index = json.loads((Path(config.model.path) / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    state = diffusers.state_dict(loaded.params["unet"])
    assert state["conv_in.weight"].shape == (16, 4, 3, 3)
    assert np.abs(state["conv_out.weight"]).max() > 0  # it begins at 0, and has learned


@pytest.mark.slow
def test_edits_of_a_data_set_and_their_evaluation(trained, tmp_path, golden, on_devices):
    on_devices(1)
    workdir, config = trained
    config = config.copy_and_resolve_references()
    folder = edit_run.edit(config, workdir)
    source = inputs.open_input(config)
    chosen = edit_run.chosen_images(config, source)
    said = captions(source, chosen, wording.holds("face"))
    assert len(chosen) == 3 and all("face" in text.split() for text in said)
    assert len(list(folder.glob("1*.png"))) == 3

    clip = tmp_path / "clip"
    shutil.copytree(golden / "latent" / "clip", clip)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(golden / "latent" / "model" / "tokenizer" / name, clip)
    config.eval.clip = str(clip)
    config.eval.text = "a cat"
    results = edits.evaluate_edits(config, workdir)
    row = results["pix2pix_zerocon"]
    assert -1 <= row["CLIP score"]["value"] <= 1 and row["CLIP score"]["images"] == 3
    assert row["SSIM to source"]["images"] == 3
    assert -1 <= row["EffNetLite0 direction"]["value"] <= 1
    kept = json.loads((workdir / "eval" / "pix2pix_zerocon" / "metrics.json").read_text())
    assert kept["realism"]["text"] == "a cat" and len(kept["realism"]["weights"]["clip"]) == 64
    # The same numbers whichever the devices.
    on_devices(2)
    again = edits.evaluate_edits(config, workdir)["pix2pix_zerocon"]
    assert again["CLIP score"]["value"] == pytest.approx(row["CLIP score"]["value"], rel=1e-6)


@pytest.mark.slow
def test_backgrounds_are_compared_where_the_word_is_not(trained, tmp_path, on_devices):
    on_devices(1)
    workdir, config = trained
    config = config.copy_and_resolve_references()
    config.update(method="ddim")
    config.data.image_size, config.sample.output = 32, str(tmp_path / "edits")
    edit_run.edit(config, workdir)
    r = np.random.default_rng(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3)}
    shapes[10] = (256, 256, 3, 3)
    alex = {f"features.{n}.weight": r.normal(0, 0.05, s).astype("f4") for n, s in shapes.items()}
    alex |= {f"features.{n}.bias": np.zeros(s[0], "f4") for n, s in shapes.items()}
    save_file(alex, tmp_path / "alex.safetensors")
    config.eval.lpips_alex = str(tmp_path / "alex.safetensors")
    row = edits.evaluate_edits(config, workdir)["ddim"]
    assert 0 <= row["BG-LPIPS-Alex"]["value"] and row["LPIPS-Alex to source"]["value"] > 0
    (folder,) = (workdir / "eval").glob("masks-*")
    shown = sorted(folder.glob("*.png"))
    assert len(shown) == 3
    # Given masks: all object leaves no background to measure, and is as wide as the picture.
    for path in shown:
        Image.new("RGB", (32, 32), "white").save(path)
    config.eval.masks = str(folder)
    assert "BG-LPIPS-Alex" not in edits.evaluate_edits(config, workdir)["ddim"]
    Image.new("RGB", (32, 32), "red").save(shown[0])
    with pytest.raises(ValueError, match="is a picture in colour; a mask"):
        edits.evaluate_edits(config, workdir)
    Image.new("RGB", (32, 32)).save(shown[0])
    row = edits.evaluate_edits(config, workdir)["ddim"]
    assert row["BG-LPIPS-Alex"]["images"] == row["BG-PSNR"]["images"] == 1
    shown[0].unlink()
    with pytest.raises(ValueError, match="white where the object is"):
        edits.evaluate_edits(config, workdir)


@pytest.mark.slow
def test_what_cannot_be_edited_is_said(trained, tmp_path):
    _, config = trained
    config = config.copy_and_resolve_references()
    config.edit.source = "submarine"
    with pytest.raises(ValueError, match="no caption of .* holds 'submarine'; choose another"):
        edit_run.edit(config, tmp_path)
    config.eval.methods = "sdedit"
    with pytest.raises(ValueError, match="names 'sdedit'; choose from ddim, pix2pix_zero"):
        load_config("configs/emoji_words.py", {"eval.methods": "sdedit"})


@pytest.mark.slow
def test_the_shipped_model_holds_a_picture_and_changes_what_is_asked(tmp_path):
    given = {"method": "ddim", "edit.source": "dark", "edit.target": "light", "sample.limit": 4}
    config = load_config("configs/emoji_words.py", {**given, "edit.steps": 20})
    folder = edit_run.edit(config, tmp_path)
    source = inputs.open_input(config)
    read = translations.resized(config, source)
    for j in edit_run.chosen_images(config, source):
        name = f"{source.ids[j]}.png"
        back = np.asarray(Image.open(folder / edit_run.RECONSTRUCTION / name), np.float64)
        made = np.asarray(Image.open(folder / name), np.float64)
        assert metrics.psnr(back[None] / 255, read(j)[None] / 255)[0] > 17
        assert made.mean() > read(j).mean() + 2, "lighter"


def test_sentences_are_the_captions_around_the_word():
    config = load_config("configs/emoji_words.py", {"edit.source": "cat", "edit.target": "dog"})
    (source, target) = wording.banks(edit_run.with_sentences(config).edit)
    assert len(source) == len(target) > 5
    assert all(a.replace("cat", "dog") == b for a, b in zip(source, target, strict=True))
    config.edit.source = "submarine"
    with pytest.raises(ValueError, match="no train caption holds 'submarine'"):
        edit_run.with_sentences(config)
