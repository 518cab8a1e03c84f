"""A latent diffusion model ready for edits, and the program that edits with it."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde.data import tokenizer
from cdsde.edit import text_directions
from cdsde.editing import attention_masks, editors, guidance, ladders, regularise
from cdsde.runtime import trees
from cdsde.weights import diffusers

OWN_SCALE = {"pnp": 7.5, "dds": 7.5, "cds": 7.5}  # classifier-free guidance; 5 for the others
DELTA = ("dds", "cds")
SHIPPED = "shipped:"
GUIDED = ("pix2pix_zero", "pix2pix_zerocon")


class Model(NamedTuple):
    """The parts of a model.

    Attributes:
      unet, vae: modules.
      params: of both, `{"unet", "vae"}`.
      factor: by which latents are scaled.
      schedule: noise levels.
      encoder: of texts.
      digests: SHA-256 of the networks' parameters, for records.
    """

    unet: Any
    vae: Any
    params: dict
    factor: float
    schedule: ladders.Schedule
    encoder: text_directions.Encoder
    digests: dict[str, str]


def load(folder: str | Path, dtype=jnp.float32, remat: bool = False) -> Model:
    """A model of diffusers' layout.

    Raises:
      ValueError: the folder, a part or a file of it is missing or does not fit; it is named.
    """
    folder = place(folder)
    if not folder.is_dir():
        raise ValueError(f"config.model.path={folder} is no folder; name a model on disk")
    # The small files first: what is missing is told before gigabytes are read.
    schedule = ladders.read_schedule(folder / "scheduler")
    tokenize = tokenizer.load(folder / "tokenizer")
    for part in ("unet", "vae", "text_encoder"):
        diffusers.read_config(folder / part)
    unet, unet_params = diffusers.load_unet(folder / "unet", dtype=dtype, remat=remat)
    vae, vae_params, factor = diffusers.load_vae(folder / "vae", dtype=dtype)
    text, text_params = diffusers.load_text_encoder(folder / "text_encoder")
    encoder = text_directions.Encoder(text, text_params, tokenize)
    params = {"unet": unet_params, "vae": vae_params}
    named = {**params, "text_encoder": text_params}
    digests = {name: trees.digest(p) for name, p in named.items()}
    return Model(unet, vae, params, factor, schedule, encoder, digests)


def place(path: str | Path) -> Path:
    """A model's folder; "shipped:NAME" is one of the package."""
    name = str(path)
    if not name.startswith(SHIPPED):
        return Path(path)
    return Path(str(resources.files("cdsde") / "assets" / "models")) / name.removeprefix(SHIPPED)


def program(model: Model, e: ConfigDict, size: int):
    """The pure function of an edit: `(params, images, texts, key, ids) -> (edit, reconstruction)`.

    images are uint8 `[B, S, S, 3]`, texts an `editors.Texts` of `[B, 77, D]`, ids uint32 `[B]` of
    the images; both results are float32 `[B, S, S, 3]`, about [-1, 1]. Texts may change.
    """
    schedule = model.schedule
    edit = _of_ladders if e.method not in DELTA else _of_scores

    def run(params, images, said, key, image_ids):
        def decode(z):
            return model.vae.apply(params["vae"], z / model.factor, method="decode")

        unet, z = noise_of(model, params), _encode(model, params, images)
        made, back = edit(unet, schedule, e, said, z, key, image_ids)
        return decode(made), decode(back)

    return run


def word_maps(model: Model, e: ConfigDict):
    """`(params, images, texts [B, 77, D], words bool [B, 77]) -> [B, s, s]`; see `masks.of_words`.

    images are uint8 `[B, S, S, 3]`, their captions the texts.
    """
    up = ladders.inversion(model.schedule, e.steps, e.inversion)

    def run(params, images, text, words):
        z = _encode(model, params, images)
        return attention_masks.of_words(noise_of(model, params), z, up, text, words)

    return run


def noise_of(model: Model, params):
    """The U-Net as a function that tells noise, whatever it predicts."""

    def unet(x, t, context, *args, **kwargs):
        out = model.unet.apply(params["unet"], x, t, context, *args, **kwargs)
        if "mutable" in kwargs:
            return ladders.to_eps(model.schedule, x, out[0], t), out[1]
        return ladders.to_eps(model.schedule, x, out, t)

    return unet


def _encode(model: Model, params, images):
    x0 = images.astype(jnp.float32) / 127.5 - 1
    return model.factor * model.vae.apply(params["vae"], x0, method="encode").mean


def _scale(e: ConfigDict):
    return e.scale if e.scale is not None else OWN_SCALE.get(e.method, 5.0)


def _of_ladders(unet, schedule, e, said, z, key, image_ids):
    """Inverted, then sampled in another way: `(edited, reconstructed)` latents."""
    down = ladders.sampling(schedule, e.steps)
    finer = e.inversion_steps or e.steps
    up = ladders.inversion(schedule, finer, e.inversion)
    for_noise, for_patches = jax.random.split(key, 3)[:2]

    def eps_fn(x, t):
        return unet(x, t, said.source)

    adjust = dict(adjust=None, per_step=None)
    if e.regularise and e.method in GUIDED:
        drawn = regularise.draw_shifts(for_noise, (len(up.t), 5, 5), z.shape[-1], z.shape[1])
        adjust = dict(adjust=regularise.regularise, per_step=drawn)
    top, states = ladders.run(z, up, eps_fn, **adjust)
    if finer != e.steps:
        states = states[ladders.shared(up, down)]
        top = states[-1]
    if e.method in GUIDED:
        return guided(unet, down, e, said, top, for_patches)
    back, _ = ladders.run(top, down, eps_fn)
    if e.method == "pnp":
        shares = e.convolution, e.attention
        made, _ = editors.plug_and_play(unet, states, down, said, _scale(e), *shares)
    else:
        made, _ = editors.word_swap(unet, top, down, said, _scale(e))
    return made, back


def guided(unet, down: ladders.Ladder, e: ConfigDict, said: editors.Texts, top: jax.Array, key):
    """The denoising of pix2pix-zero and pix2pix-zeroCon: `(edited, reconstructed)` latents.

    top is `[B, h, w, 4]`, the inverted latents; the key draws the patches.
    """
    contrast = e.method == "pix2pix_zerocon"
    settings = editors.Zerocon(
        step=e.step,
        map_weight=e.map_weight,
        feature_weight=e.feature_weight if contrast else 0.0,
        scale=_scale(e),
        temperature=e.temperature,
        pair=not contrast,
    )
    patches = _patches(unet, top, said, e, key, e.steps) if contrast else {}
    made, _, told = editors.zerocon(unet, top, down, said, settings, patches)
    return made, told["source"]


def _of_scores(unet, schedule, e, said, z, key, image_ids):
    """DDS and CDS: levels of each iteration from the seed, noise from seed and image."""
    for_levels, for_noise, for_patches = jax.random.split(key, 3)
    levels = jax.random.randint(for_levels, (e.iterations,), 50, 949)
    own = jax.vmap(jax.random.fold_in, (None, 0))(for_noise, image_ids)
    drawn = jax.vmap(lambda k: jax.random.normal(k, (e.iterations, *z.shape[1:])))(own)
    more = {}
    if e.method == "cds":
        patches = _patches(unet, z, said, e, for_patches, e.iterations)
        more = dict(feature_weight=e.feature_weight, ids=patches, temperature=e.temperature)
    made, _, _ = editors.delta_denoising(
        unet, z, schedule, said, levels, jnp.moveaxis(drawn, 1, 0), _scale(e), e.rate, **more
    )
    return made, z


def _patches(unet, z, said, e, key, steps: int) -> dict[str, Any]:
    """Patches of every layer looked at, drawn anew for each step: a row a step."""
    chosen = guidance.of_decoder if e.layers == "decoder" else guidance.of_encoder

    def features(z, context):
        return editors.observe(unet, z[:1], jnp.int32(1), context[:1])[2]

    shapes, side = jax.eval_shape(features, z, said.source), z.shape[1:3]

    def draw(key):
        return guidance.draw_ids(key, shapes, chosen, side, e.num_patches, tuple(e.patches))

    return jax.vmap(draw)(jax.random.split(key, steps))


def said(model: Model, e: ConfigDict, captions: list[str]) -> editors.Texts:
    """The texts of edits of images with these captions, `[B, 77, D]` each.

    Raises:
      ValueError: no source or target is named; word swap where the caption lacks the word.
    """
    source = model.encoder(captions)
    if e.method in GUIDED:
        target = source + e.strength * text_directions.direction(model.encoder, *banks(e))[None]
        negative = source if e.negative is None else model.encoder([e.negative])
    else:
        target = model.encoder([swapped(c, e.source, e.target) for c in captions])
        negative = model.encoder([e.negative or ""])
    return editors.Texts(source, target, np.broadcast_to(negative, source.shape))


def banks(e: ConfigDict) -> list[list[str]]:
    """The sentences about the source and about the target: from files, or from templates.

    Raises:
      ValueError: a file is missing or empty.
    """
    return [
        text_directions.read_bank(path) if path else text_directions.bank(concept, e.templates)
        for path, concept in ((e.source_bank, e.source), (e.target_bank, e.target))
    ]


def swapped(caption: str, source: str, target: str) -> str:
    """The caption with the one concept in place of the other.

    Raises:
      ValueError: the caption does not have it.
    """
    for old, new in ((source, target), (bare(source), bare(target))):
        if (at := place_of(old, caption)) is not None:
            return caption[:at] + new + caption[at + len(old) :]
    raise ValueError(
        f"the caption '{caption}' does not hold '{source}', which is to become '{target}'; give "
        "another --config.edit.caption or --config.edit.source"
    )


def place_of(words: str, caption: str) -> int | None:
    """Where a caption first has these words, whole ("man" is not in "woman"); in any case."""
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caption, re.IGNORECASE)
    return found and found.start()


def bare(concept: str) -> str:
    """A concept without its article."""
    words = concept.split()
    return " ".join(words[1:] if words[0].lower() in ("a", "an", "the") and words[1:] else words)
