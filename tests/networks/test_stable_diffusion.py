"""The networks of latent diffusion against diffusers' and transformers' numbers (golden/latent)."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_vectors import close as close
from latent_vectors import folder as folder
from latent_vectors import nchw, nhwc

from cdsde.data import tokenizer
from cdsde.editing import guidance
from cdsde.networks.stable_diffusion import blip, unet
from cdsde.weights import diffusers

pytestmark = pytest.mark.usefixtures("compile_quickly")


def by_module(collection: dict, leaf: str) -> dict[str, np.ndarray]:
    """What a network kept of the first sample, by module path."""
    return {path: np.asarray(x)[0] for path, x in guidance.captured(collection, leaf).items()}


def test_small_unet_maps_and_features(folder, close):
    module, params = diffusers.load_unet(folder / "unet_small")
    v = np.load(folder / "unet_small.npz")
    inputs = nhwc(v["sample"]), v["timesteps"], v["encoder_hidden_states"]
    plain = jax.jit(module.apply)(params, *inputs)
    close(nchw(plain), "unet_small", "out")
    kept = jax.jit(lambda *a: module.apply(*a, mutable=["maps", "features"]))(params, *inputs)
    np.testing.assert_allclose(kept[0], plain, atol=1e-5)
    maps = by_module(kept[1]["maps"], "probabilities")
    features = by_module(kept[1]["features"], "out")
    seen = 0
    for name in v.files:
        kind, _, path = name.partition("/")
        if kind == "probs":
            close(maps[path], "unet_small", name)
        elif kind == "attn1_out":
            close(features[path], "unet_small", name)
        elif kind == "resnet_out":
            close(nchw(features[path]), "unet_small", name)
        seen += kind in ("probs", "attn1_out", "resnet_out")
    assert seen > 12 and len(maps) == 4


def test_unet(folder, close):
    module, params = diffusers.load_unet(folder / "model" / "unet")
    v = np.load(folder / "unet.npz")
    inputs = nhwc(v["sample"]), v["timesteps"], v["encoder_hidden_states"]
    out, kept = jax.jit(lambda *a: module.apply(*a, mutable=["maps", "features"]))(params, *inputs)
    close(nchw(out), "unet", "out")
    maps = by_module(kept["maps"], "probabilities")
    features = by_module(kept["features"], "out")
    assert len(maps) == 16
    seen = 0
    for name in v.files:
        kind, _, path = name.partition("/")
        seen += 1
        if kind == "probs":
            close(maps[path], "unet", name)
        elif kind == "probs_rows0_8":
            close(maps[path][:, :8], "unet", name)
        elif kind == "probs_token_mean":
            close(maps[path].mean(1), "unet", name)
        elif kind == "attn1_out":
            close(features[path], "unet", name)
        elif kind == "resnet_out":
            close(nchw(features[path]), "unet", name)
        else:
            seen -= 1
    assert seen > 40


@pytest.mark.slow
def test_what_is_not_asked_for_is_not_computed(folder):
    module, params = diffusers.load_unet(folder / "unet_small")
    inputs = jnp.zeros((1, 16, 16, 4)), jnp.zeros(1), jnp.zeros((1, 13, 32))

    def outputs(**kwargs):
        lowered = jax.jit(lambda *a: module.apply(*a, **kwargs)).lower(params, *inputs)
        return lowered.compile().memory_analysis().output_size_in_bytes

    assert outputs() == 4 * 16 * 16 * 4
    assert outputs(mutable=["maps"]) > outputs() + 4 * 8 * 256 * 13


@pytest.mark.slow
def test_chunked_attention_is_attention():
    from cdsde.networks.stable_diffusion import layers

    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2048, 2, 8))
    whole = layers.weigh(layers.probabilities(q, k), v)
    np.testing.assert_allclose(layers.attend(q, k, v), whole, atol=1e-6)
    one, other = (
        jax.grad(lambda q, f=f: (f(q) ** 2).sum())(q)
        for f in (
            lambda q: layers.attend(q, k, v),
            lambda q: layers.weigh(layers.probabilities(q, k), v),
        )
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["model/vae", "vae_legacy_keys"])
def test_autoencoder(folder, close, name):
    module, params, factor = diffusers.load_vae(folder / name)
    assert factor == 0.18215
    v = np.load(folder / "vae.npz")
    x = jnp.asarray(v["image_uint8"].astype(np.float32) / 127.5 - 1)[None]
    moments = jax.jit(lambda p, x: module.apply(p, x, method="encode"))(params, x)
    close(nchw(moments.mean[0]), "vae", "mean")
    close(nchw(moments.log_variance[0]), "vae", "logvar")
    close(nchw(moments.std[0]), "vae", "std")
    close(nchw(factor * moments.mean[0]), "vae", "latent_scaled")
    decoded = jax.jit(lambda p, z: module.apply(p, z, method="decode"))(params, moments.mean)
    close(nchw(decoded[0]), "vae", "decoded")


def test_text_encoder(folder, close, tmp_path):
    module, params = diffusers.load_text_encoder(folder / "model" / "text_encoder")
    v = np.load(folder / "text_encoder.npz")
    out = jax.jit(module.apply)(params, v["input_ids"])
    close(out.hidden, "text_encoder", "last_hidden_state")
    close(out.pooled, "text_encoder", "pooler_output")
    # As newer versions write it: without the model's name before each key.
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model" / "text_encoder" / "model.safetensors")
    bare = {k.removeprefix("text_model."): w for k, w in weights.items()}
    save_file(bare, tmp_path / "model.safetensors")
    config = (folder / "model" / "text_encoder" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    again = diffusers.load_text_encoder(tmp_path)[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))


def test_clip(folder, close):
    module, params = diffusers.load_clip(folder / "clip")
    v = np.load(folder / "clip.npz")
    images = nhwc(v["pixel_values"])
    text = module.apply(params, v["input_ids"], method="embed_text")
    image = module.apply(params, images, method="embed_image")
    close(_unit(text), "clip", "text_embeds")
    close(_unit(image), "clip", "image_embeds")
    cosine = module.apply(params, v["input_ids"], images)
    close(cosine.T, "clip", "cosine")


def _unit(x):
    return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.slow
def test_captions(folder, close):
    module, params = diffusers.load_blip(folder / "blip")
    v = np.load(folder / "blip.npz")
    images = nhwc(v["pixel_values"])
    close(module.apply(params, images, method="encode"), "blip", "image_embeds")
    logits = module.apply(params, images[:1], v["teacher_forced_ids"])
    close(logits, "blip", "teacher_forced_logits")
    tokens = json.loads((folder / "params.json").read_text())["blip"]["max_new_tokens"]
    greedy = blip.caption_ids(module, params, images, tokens=tokens)
    np.testing.assert_array_equal(greedy, v["greedy_ids"])
    # transformers puts its beginning in place of the first token and drops the last, a separator.
    prompt = v["prompt_ids"][0].tolist()[1:-1]
    found = blip.caption_ids(module, params, images, prompt, tokens)
    np.testing.assert_array_equal(found, v["greedy_ids_prompt"])
    found = blip.caption_ids(module, params, images[:1], tokens=tokens, beams=3)
    np.testing.assert_array_equal(found, v["beam3_ids_first_image"])


@pytest.mark.parametrize(
    ("name", "where"), [("tiny", "model/tokenizer"), ("full", "clip_bpe_full")]
)
def test_tokenizer(folder, name, where):
    tokenize = tokenizer.load(folder / where)
    cases = json.loads((folder / f"tokenizer_{name}_ids.json").read_text())
    ids = next(v for k, v in cases.items() if k not in ("strings", "note"))
    pairs = list(zip(cases["strings"], ids, strict=True))
    assert len(pairs) > 10
    for text, ids in pairs:
        np.testing.assert_array_equal(tokenize([text])[0], ids, err_msg=repr(text))


def test_the_padding_and_the_window_of_a_tokenizer(folder, tmp_path):
    where = tmp_path / "tokenizer"
    shutil.copytree(folder / "model" / "tokenizer", where)
    plain = tokenizer.load(where)
    (ids,) = plain(["a cat"])
    assert ids[-1] == plain.end and len(ids) == 77

    def written(name, **fields):
        path = where / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return tokenizer.load(where)

    written("tokenizer_config.json", pad_token="a</w>")
    assert tokenizer.load(where)(["a cat"])[0][-1] == plain.end
    padded = written("special_tokens_map.json", pad_token={"content": "!"})  # as in SD-2.x
    (other,) = padded(["a cat"])
    words = plain.count("a cat")
    np.testing.assert_array_equal(other[:words], ids[:words])
    assert (other[words:] == json.loads((where / "vocab.json").read_text())["!"]).all()
    tokenizer.save(tmp_path / "saved", padded)
    np.testing.assert_array_equal(tokenizer.load(tmp_path / "saved")(["a cat"])[0], other)
    assert written("tokenizer_config.json", model_max_length=10**30).length == 77
    assert written("tokenizer_config.json", model_max_length=20)(["a cat"]).shape == (1, 20)
    for wrong in (None, "long", 1):
        with pytest.raises(ValueError, match="sets model_max_length to"):
            written("tokenizer_config.json", model_max_length=wrong)
    written("tokenizer_config.json", model_max_length=77)
    with pytest.raises(ValueError, match="names the pad_token 'nothing', which is not in its voc"):
        written("special_tokens_map.json", pad_token="nothing")


def test_full_size(folder):
    module = unet.UNet()
    x = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)
    text = jax.ShapeDtypeStruct((1, 77, 768), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), text)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 2) == 859.52
    from cdsde.networks.stable_diffusion.vae import AutoencoderKL

    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(AutoencoderKL().init, jax.random.key(0), x)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 2) == 83.65


def test_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no .*unet/config.json; a model in diffusers'"):
        diffusers.load_unet(tmp_path / "unet")
    (tmp_path / "config.json").write_text((folder / "unet_small" / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no weights: expected diffusion_pytorch_model.safe"):
        diffusers.load_unet(tmp_path)
    config = json.loads((folder / "unet_small" / "config.json").read_text())
    config["block_out_channels"] = [32, 32]
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "diffusion_pytorch_model.safetensors"
    (tmp_path / name).symlink_to((folder / "unet_small" / name).resolve())
    with pytest.raises(ValueError, match="does not fit its config.json: .* ill-shaped .*file"):
        diffusers.load_unet(tmp_path)
    with pytest.raises(ValueError, match="has no vocab.json; a tokenizer is its vocab.json"):
        tokenizer.load(tmp_path)
    module, params = diffusers.load_unet(folder / "unet_small")
    with pytest.raises(ValueError, match="latents of 15x16 cannot be halved 1 times"):
        module.apply(params, jnp.zeros((1, 15, 16, 4)), jnp.zeros(1), jnp.zeros((1, 5, 32)))
