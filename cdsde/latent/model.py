"""A latent diffusion model ready for edits, and the program that edits with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import trees
from cdsde.latent import ddim, editors, files, guidance, noise, texts, tokenizer

OWN_SCALE = {"pnp": 7.5, "dds": 7.5, "cds": 7.5}  # classifier-free guidance; 5 for the others
DELTA = ("dds", "cds")
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
    schedule: ddim.Schedule
    encoder: texts.Encoder
    digests: dict[str, str]


def load(folder: str | Path, dtype=jnp.float32, remat: bool = False) -> Model:
    """A model of diffusers' layout.

    Raises:
      ValueError: the folder, a part or a file of it is missing or does not fit; it is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"config.model.path={folder} is no folder; name a model on disk")
    unet, unet_params = files.load_unet(folder / "unet", dtype=dtype, remat=remat)
    vae, vae_params, factor = files.load_vae(folder / "vae", dtype=dtype)
    text, text_params = files.load_text_encoder(folder / "text_encoder")
    encoder = texts.Encoder(text, text_params, tokenizer.load(folder / "tokenizer"))
    schedule = ddim.read_schedule(folder / "scheduler")
    params = {"unet": unet_params, "vae": vae_params}
    named = {**params, "text_encoder": text_params}
    digests = {name: trees.digest(p) for name, p in named.items()}
    return Model(unet, vae, params, factor, schedule, encoder, digests)


def program(model: Model, e: ConfigDict, size: int):
    """The pure function of an edit: `(params, images, texts, key, ids) -> (edit, reconstruction)`.

    images are uint8 `[B, S, S, 3]`, texts an `editors.Texts` of `[B, 77, D]`, ids uint32 `[B]` of
    the images; both results are float32 `[B, S, S, 3]`, about [-1, 1]. Texts may change.
    """
    schedule = model.schedule
    side = (size // 8, size // 8)
    down = ddim.sampling(schedule, e.steps)
    up = ddim.inversion(schedule, e.steps, e.inversion)
    scale = e.scale if e.scale is not None else OWN_SCALE.get(e.method, 5.0)
    chosen = guidance.of_decoder if e.layers == "decoder" else guidance.of_encoder

    def run(params, images, said, key, image_ids):
        def unet(x, t, context, *args, **kwargs):
            out = model.unet.apply(params["unet"], x, t, context, *args, **kwargs)
            if "mutable" in kwargs:
                return ddim.to_eps(schedule, x, out[0], t), out[1]
            return ddim.to_eps(schedule, x, out, t)

        def decode(z):
            return model.vae.apply(params["vae"], z / model.factor, method="decode")

        x0 = images.astype(jnp.float32) / 127.5 - 1
        z = model.factor * model.vae.apply(params["vae"], x0, method="encode").mean
        keys = jax.random.split(key, 3)
        if e.method in DELTA:
            found = _delta(unet, schedule, e, scale, said, z, keys, image_ids, side, chosen)
            return decode(found), decode(z)

        def eps_fn(x, t):
            return unet(x, t, said.source)

        adjust = dict(adjust=None, per_step=None)
        if e.regularise and e.method in GUIDED:
            drawn = noise.draw_shifts(keys[0], (len(up.t), 5, 5), z.shape[-1], side[0])
            adjust = dict(adjust=noise.regularise, per_step=drawn)
        top, states = ddim.run(z, up, eps_fn, **adjust)
        if e.method in GUIDED:
            contrast = e.method == "pix2pix_zerocon"
            patches = {}
            if contrast:
                shapes = _features(unet, z, said)
                patches = jax.vmap(
                    lambda k: guidance.draw_ids(
                        k, shapes, chosen, side, e.num_patches, tuple(e.patches)
                    )
                )(jax.random.split(keys[1], e.steps))
            settings = editors.Zerocon(
                step=e.step,
                map_weight=e.map_weight,
                feature_weight=e.feature_weight if contrast else 0.0,
                scale=scale,
                temperature=e.temperature,
                pair=not contrast,
            )
            edit, _, told = editors.zerocon(unet, top, down, said, settings, patches)
            return decode(edit), decode(told["source"])
        source, _ = ddim.run(top, down, eps_fn)
        if e.method == "pnp":
            edit, _ = editors.plug_and_play(
                unet, states, down, said, scale, e.convolution, e.attention
            )
        else:
            edit, _ = editors.word_swap(unet, top, down, said, scale)
        return decode(edit), decode(source)

    return run


def _features(unet, z, said) -> dict[str, Any]:
    """Shapes of the features by layer, of one image."""

    def features(z, context):
        _, kept = unet(z[:1], jnp.int32(1), context[:1], mutable=editors.KEPT)
        return guidance.captured(kept["features"], "out")

    return jax.eval_shape(features, z, said.source)


def _delta(unet, schedule, e, scale, said, z, keys, image_ids, side, chosen):
    """DDS and CDS: levels of each iteration from the seed, noise from seed and image."""
    levels = jax.random.randint(keys[0], (e.iterations,), 50, 949)
    own = jax.vmap(jax.random.fold_in, (None, 0))(keys[1], image_ids)
    drawn = jax.vmap(lambda k: jax.random.normal(k, (e.iterations, *z.shape[1:])))(own)
    more = {}
    if e.method == "cds":
        shapes = _features(unet, z, said)
        patches = jax.vmap(
            lambda k: guidance.draw_ids(k, shapes, chosen, side, e.num_patches, tuple(e.patches))
        )(jax.random.split(keys[2], e.iterations))
        more = dict(feature_weight=e.feature_weight, ids=patches, temperature=e.temperature)
    found, _, _ = editors.delta_denoising(
        unet, z, schedule, said, levels, jnp.moveaxis(drawn, 1, 0), scale, e.rate, **more
    )
    return found


def said(model: Model, e: ConfigDict, captions: list[str]) -> editors.Texts:
    """The texts of edits of images with these captions, `[B, 77, D]` each.

    Raises:
      ValueError: no source or target is named; word swap where the caption lacks the word.
    """
    source = model.encoder(captions)
    if e.method in GUIDED:
        banks = [
            texts.read_bank(path) if path else texts.bank(concept)
            for path, concept in ((e.source_bank, e.source), (e.target_bank, e.target))
        ]
        target = source + e.strength * texts.direction(model.encoder, *banks)[None]
        negative = source if e.negative is None else model.encoder([e.negative])
    else:
        target = model.encoder([swapped(c, e.source, e.target) for c in captions])
        negative = model.encoder([e.negative or ""])
    return editors.Texts(source, target, np.broadcast_to(negative, source.shape))


def swapped(caption: str, source: str, target: str) -> str:
    """The caption with the one concept in place of the other.

    Raises:
      ValueError: the caption does not have it.
    """
    for old, new in ((source, target), (_bare(source), _bare(target))):
        if old.lower() in caption.lower():
            at = caption.lower().index(old.lower())
            return caption[:at] + new + caption[at + len(old) :]
    raise ValueError(
        f"the caption '{caption}' does not hold '{source}', which is to become '{target}'; give "
        "another --config.edit.caption or --config.edit.source"
    )


def _bare(concept: str) -> str:
    """Without its article."""
    words = concept.split()
    return " ".join(words[1:] if words[0].lower() in ("a", "an", "the") and words[1:] else words)
