"""Edits by words: a loaded latent diffusion model, and the program that edits with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdsde.data import to_float, tokenizer
from cdsde.edit import text_directions
from cdsde.editing import (
    attention_masks,
    ddim,
    edit_friendly,
    editors,
    guidance,
    ledits,
    null_text,
    prompt_to_prompt,
    regularise,
)
from cdsde.runtime import trees
from cdsde.weights import diffusers, hub
from cdsde.weights.resolve import SHIPPED, shipped_folder

# w of classifier-free guidance, or of LEDITS++'s; others: 5, with null-text inversion 7.5
OWN_SCALE = {"pnp": 7.5, "p2p": 7.5, "dds": 7.5, "cds": 7.5, "edit_friendly": 15.0, "ledits": 5.0}
WITHOUT_INVERSION = ("dds", "cds")
REPLAYED = ("edit_friendly", "ledits")  # from DDPM noises; the others: from DDIM's
LEVELS = (50, 949)  # of dds and cds, as published: from the first to below the second
GUIDED = ("pix2pix_zero", "pix2pix_zerocon")


class Model(NamedTuple):
    """A latent diffusion model with its parameters.

    Attributes:
      unet, vae: Flax modules.
      params: `{"unet": tree, "vae": tree}`.
      factor: scale of the latents, s in z = s E(x).
      schedule: noise levels.
      encoder: text encoder.
      digests: SHA-256 of each network's parameters, for records.
      files: SHA-256 of the model's JSON files and merges, which say how to use the parameters.
    """

    unet: Any
    vae: Any
    params: dict
    factor: float
    schedule: ddim.LatentSchedule
    encoder: text_directions.Encoder
    digests: dict[str, str]
    files: str


def load(folder: str | Path, dtype=jnp.float32, remat: bool = False) -> Model:
    """Load a model in diffusers' layout.

    Args:
      folder: the model's folder; "shipped:NAME" is a model of the package, and "hf:OWNER/REPO" of a
        hub.
      dtype: dtype of the U-Net's and the VAE's computations.
      remat: whether the U-Net recomputes activations in the backward pass.

    Raises:
      ValueError: the folder, or a part or file of it, is missing or does not fit (named).
    """
    name = str(folder)
    if name.startswith(SHIPPED):
        folder = shipped_folder("models") / name.removeprefix(SHIPPED)
    folder = hub.local(folder, "model")
    if not folder.is_dir():
        raise ValueError(
            f"config.model.path={folder} is no folder; name a model on disk, or hf:OWNER/REPO"
        )
    # The small files first: a missing file raises before gigabytes are read.
    schedule = diffusers.read_schedule(folder / "scheduler")
    tokenize = tokenizer.load(folder / "tokenizer")
    for part in ("unet", "vae", "text_encoder"):
        diffusers.read_config(folder / part)
    unet, unet_params = diffusers.load_unet(folder / "unet", dtype=dtype, remat=remat)
    vae, vae_params, factor = diffusers.load_vae(folder / "vae", dtype=dtype)
    text, text_params = diffusers.load_text_encoder(folder / "text_encoder")
    known, ids = text.text.vocabulary, tokenize.words.get_vocab().values()
    if max(ids) >= known:
        raise ValueError(
            f"{folder}/tokenizer/vocab.json has ids up to {max(ids)}, and the text encoder beside "
            f"it knows {known} tokens; get both from one publisher"
        )
    tokenize = tokenize._replace(length=min(tokenize.length, text.text.positions))
    encoder = text_directions.Encoder(text, text_params, tokenize)
    params = {"unet": unet_params, "vae": vae_params}
    networks = {**params, "text_encoder": text_params}
    digests = {name: trees.digest(p) for name, p in networks.items()}
    return Model(unet, vae, params, factor, schedule, encoder, digests, _digest_of_files(folder))


def _digest_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        for path in sorted([*(folder / part).glob("*.json"), *(folder / part).glob("*.txt")]):
            digest.update(f"{part}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()


def check_levels(model: Model, config: ConfigDict) -> None:
    """Checks that the model's schedule has the levels of the config's steps, before any work.

    Raises:
      ValueError: it has not; the message names numbers of steps that work.
    """
    e = config.edit
    if config.method in WITHOUT_INVERSION:
        if (count := len(model.schedule.alpha_bar)) < LEVELS[1]:
            raise ValueError(
                f"the model's scheduler has {count} noise levels, and {config.method} draws levels "
                f"of {LEVELS[0]} to {LEVELS[1] - 1}; choose another config.method"
            )
        return
    ddim.inversion(model.schedule, e.inversion_steps or e.steps, _kind(e))
    if e.inversion_steps not in (None, e.steps):
        ddim.shared(model.schedule, e.steps, e.inversion_steps, _kind(e))


def _kind(e: ConfigDict) -> str:
    """The kind of DDIM inversion; that of null-text inversion is `next`, as published."""
    return "next" if e.inversion == "null_text" else e.inversion


def program(model: Model, config: ConfigDict):
    """The pure function of an edit: `(params, images, texts, key, ids) -> (edit, reconstruction)`.

    images are uint8 `[B, S, S, 3]`, texts an `editors.Texts` of `[B, 77, D]`, ids the uint32 `[B]`
    ids of the images; both results are float32 `[B, S, S, 3]`, about [-1, 1].
    """
    edit = _inverted_edit
    if config.method in WITHOUT_INVERSION:
        edit = _score_edit
    elif config.method in REPLAYED:
        edit = _replayed_edit

    def run(params, images, texts, key, image_ids):
        def decode(z):
            return model.vae.apply(params["vae"], z / model.factor, method="decode")

        unet, z = noise_of(model, params), _encode(model, params, images)
        edited, reconstructed = edit(unet, model.schedule, config, texts, z, key, image_ids)
        return decode(edited), decode(reconstructed)

    return run


def word_maps(model: Model, e: ConfigDict):
    """The pure function `(params, images, text, words) -> [B, s, s]` of the words' attention maps.

    images are uint8 `[B, S, S, 3]`, text float32 `[B, 77, D]` encodes their captions, words is bool
    `[B, 77]`; see `attention_masks.of_words`.
    """
    up = ddim.inversion(model.schedule, e.steps, _kind(e))

    def run(params, images, text, words):
        z = _encode(model, params, images)
        return attention_masks.of_words(noise_of(model, params), z, up, text, words)

    return run


def noise_of(model: Model, params):
    """The U-Net as a function that returns ε, whatever its prediction type."""

    def unet(x, t, context, *args, **kwargs):
        out = model.unet.apply(params["unet"], x, t, context, *args, **kwargs)
        if "mutable" in kwargs:
            return ddim.to_eps(model.schedule, x, out[0], t), out[1]
        return ddim.to_eps(model.schedule, x, out, t)

    return unet


def _encode(model: Model, params, images):
    return model.factor * model.vae.apply(params["vae"], to_float(images), method="encode").mean


def _scale(config: ConfigDict):
    if config.edit.scale is not None:
        return config.edit.scale
    return 7.5 if config.edit.inversion == "null_text" else OWN_SCALE.get(config.method, 5.0)


def _noise(key, image_ids, count: int, z) -> jax.Array:
    """Noise `[count, B, h, w, C]` for latents z, which seed and image id draw."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, image_ids)
    noise = jax.vmap(lambda k: jax.random.normal(k, (count, *z.shape[1:])))(keys)
    return jnp.moveaxis(noise, 1, 0)


def replayed(schedule: ddim.LatentSchedule, e: ConfigDict) -> ddim.Ladder:
    """The moves of edit_friendly and ledits: those of `steps` without the noisiest share `skip`."""
    skipped = round(e.skip * e.steps)
    return ddim.Ladder(*(field[skipped:] for field in ddim.sampling(schedule, e.steps)))


def _replayed_edit(unet, schedule, config: ConfigDict, texts, z, key, image_ids):
    """Edit-friendly inversion, then its noises replayed: `(edited, reconstructed)` latents."""
    e, scale = config.edit, _scale(config)
    down = replayed(schedule, e)
    noise = _noise(key, image_ids, len(down.t), z)
    if config.method == "ledits":
        added, removed = texts.words
        concepts = [
            ledits.Concept(texts.target, added, 1),
            ledits.Concept(texts.source, removed, -1),
        ]

        def source(x, t):
            return unet(x, t, texts.negative)

        def edited(x, t):
            args = texts.negative, concepts, scale, e.threshold
            return ledits.guided_eps(unet, x, t, *args)[0]
    else:
        unedited = texts._replace(target=texts.source)

        def source(x, t):
            return editors.guided_eps(unet, x, t, unedited, e.source_scale)

        def edited(x, t):
            return editors.guided_eps(unet, x, t, texts, scale)

    x, shifts, reconstructed = edit_friendly.invert(z, noise, down, source)
    return edit_friendly.replay(x, shifts, down, edited), reconstructed


def _inverted_edit(unet, schedule, config: ConfigDict, texts, z, key, image_ids):
    """DDIM inversion, then guided sampling: `(edited, reconstructed)` latents `[B, h, w, 4]`."""
    e, method = config.edit, config.method
    down = ddim.sampling(schedule, e.steps)
    inversion_steps = e.inversion_steps or e.steps
    up = ddim.inversion(schedule, inversion_steps, _kind(e))
    noise_key, patch_key = jax.random.split(key, 3)[:2]

    def eps_fn(x, t):
        return unet(x, t, texts.source)

    adjust, shifts = None, None
    if e.regularise and method in GUIDED:
        adjust = regularise.towards_noise
        shifts = regularise.draw_shifts(noise_key, (len(up.t), 5, 5), z.shape[-1], z.shape[1])
    top, states = ddim.run(z, up, eps_fn, adjust=adjust, per_step=shifts)
    if inversion_steps != e.steps:
        states = states[ddim.shared(schedule, e.steps, inversion_steps, _kind(e))]
        top = states[-1]
    if method in GUIDED:
        return guided(unet, down, config, texts, top, patch_key)
    scale, reconstructed = _scale(config), None
    if e.inversion == "null_text":
        args = states, down, texts.source, texts.negative, scale
        negatives, reconstructed = null_text.optimise(unet, *args)
        texts = texts._replace(negative=negatives)
    if method == "p2p":
        settings = e.cross_attention, e.attention, e.attention_side, e.blend
        args = unet, top, down, texts, texts.words, scale, *settings
        return prompt_to_prompt.prompt_to_prompt(*args)
    if reconstructed is None:
        reconstructed, _ = ddim.run(top, down, eps_fn)
    if method == "pnp":
        shares = e.convolution, e.attention
        edited, _ = editors.plug_and_play(unet, states, down, texts, scale, *shares)
    else:
        edited, _ = editors.word_swap(unet, top, down, texts, scale)
    return edited, reconstructed


def guided(unet, down: ddim.Ladder, config: ConfigDict, texts: editors.Texts, top, key):
    """The denoising of pix2pix-zero and pix2pix-zeroCon: `(edited, reconstructed)` latents.

    Args:
      unet: `noise_of` the model.
      down: the sampling ladder.
      config: the task.
      texts: hidden states `[B, 77, D]`.
      top: `[B, h, w, 4]`, the inverted latents.
      key: typed key; it draws the patches.
    """
    e, contrast = config.edit, config.method == "pix2pix_zerocon"
    settings = editors.Zerocon(
        step=e.step,
        map_weight=e.map_weight,
        feature_weight=e.feature_weight if contrast else 0.0,
        scale=_scale(config),
        temperature=e.temperature,
        pair=not contrast,
    )
    patches = _patches(unet, top, texts, e, key, e.steps) if contrast else {}
    edited, _, measured = editors.zerocon(unet, top, down, texts, settings, patches)
    return edited, measured["source"]


def _score_edit(unet, schedule, config: ConfigDict, texts, z, key, image_ids):
    """DDS and CDS. The seed draws each iteration's level; seed and image id draw its noise."""
    e = config.edit
    level_key, noise_key, patch_key = jax.random.split(key, 3)
    levels = jax.random.randint(level_key, (e.iterations,), *LEVELS)
    noise = _noise(noise_key, image_ids, e.iterations, z)
    contrast = {}
    if config.method == "cds":
        patches = _patches(unet, z, texts, e, patch_key, e.iterations)
        contrast = dict(feature_weight=e.feature_weight, ids=patches, temperature=e.temperature)
    edited, _, _ = editors.delta_denoising(
        unet, z, schedule, texts, levels, noise, _scale(config), e.rate, **contrast
    )
    return edited, z


def _patches(unet, z, texts: editors.Texts, e: ConfigDict, key, steps: int) -> dict[str, Any]:
    """Patch ids of every compared layer, drawn anew for each step: `[steps, n]` each."""
    chosen = guidance.of_decoder if e.layers == "decoder" else guidance.of_encoder

    def features(z, context):
        return editors.observe(unet, z[:1], jnp.int32(1), context[:1])[2]

    shapes, side = jax.eval_shape(features, z, texts.source), z.shape[1:3]

    def draw(key):
        return guidance.draw_ids(key, shapes, chosen, side, e.num_patches, tuple(e.patches))

    return jax.vmap(draw)(jax.random.split(key, steps))
