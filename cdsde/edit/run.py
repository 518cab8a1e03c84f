"""`--mode=edit`: images changed by words, one PNG each, the inversion's reconstruction beside it.

A run that was cut off goes on where it stopped; results of other settings are refused, not mixed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from cdsde import config as config_lib
from cdsde.data import (
    FilesSource,
    captions,
    contact_sheet,
    decode,
    eval_batches,
    resize,
    to_uint8,
    write_png,
)
from cdsde.data.inputs import open_split
from cdsde.edit import pipeline
from cdsde.networks.stable_diffusion import blip
from cdsde.runtime import mesh
from cdsde.runtime.records import SHEET, claim, output_names
from cdsde.weights import diffusers

FILTER = "lanczos"  # by which images are brought to `edit.image_size`
RECONSTRUCTION = "reconstructions"  # folder beside the results
RECONSTRUCTED = "reconstruction"  # title of its column on sheets
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def edit(config: ConfigDict, workdir) -> Path:
    """Edit every input image; returns the folder of the results.

    Raises:
      ValueError: something is not said (model, input, source, target, caption), a part of the model
        is missing, an image is broken, or results of other settings are in the way.
    """
    e = config.edit
    for key, value in (
        ("model.path", config.model.path),
        ("edit.source", e.source),
        ("edit.target", e.target),
    ):
        if not value:
            raise ValueError(f"config.{key} is not given; --mode=edit needs it")
    source = open_input(config)
    loaded = pipeline.load(config.model.path, jnp.dtype(config.dtype), config.remat)
    halvings = 2 ** (len(loaded.vae.widths) + len(loaded.unet.widths) - 2)
    if e.image_size % halvings:
        raise ValueError(
            f"config.edit.image_size is {e.image_size}; the model takes multiples of {halvings}"
        )
    folder = output_folder(config, workdir)
    names = output_names(source.ids)
    chosen = wanted(config, source)
    config = with_sentences(config)
    e = config.edit
    mine = chosen[jax.process_index() :: jax.process_count()]
    todo = [j for j in mine if not (folder / names[j]).exists()]
    captions = captions_of(config, source, todo)
    texts = pipeline.said(loaded, e, list(captions.values())) if todo else None
    place = {name: n for n, name in enumerate(captions)}
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, _record(config, loaded), names, "edit.output")

    devices = mesh.make_mesh(jax.local_devices())
    params = mesh.put_replicated(loaded.params, devices)
    run = jax.jit(pipeline.program(loaded, e, e.image_size))
    key = mesh.put_replicated(jax.random.key(e.seed), devices)
    size = mesh.round_up(e.batch_size, devices)
    batches = eval_batches(
        source, image_size=e.image_size, batch_size=size, filter=FILTER, indices=todo
    )
    by_id = dict(zip(source.ids, names, strict=True))
    with tqdm(total=len(todo), unit="image", desc=e.method, disable=None) as bar:
        for batch in batches:
            at = [place[name] for name in batch["name"]]
            said = jax.tree.map(lambda rows, at=at: np.asarray(rows)[at], texts)
            rows = (batch["image"], said, batch["id"])
            images, said, ids = mesh.put_batch(rows, devices)
            made = [mesh.local_rows(x) for x in run(params, images, said, key, ids)]
            for name, real, result, back in zip(batch["name"], batch["mask"], *made, strict=True):
                if real:
                    # The result last: it says that the image is done.
                    (folder / RECONSTRUCTION).mkdir(exist_ok=True)
                    write_png(folder / RECONSTRUCTION / by_id[name], to_uint8(back))
                    write_png(folder / by_id[name], to_uint8(result))
                    bar.update()
    mesh.barrier("edited")
    if jax.process_index() == 0:
        _sheet(e, source, folder, names, chosen[:16])
        logging.info("results in %s, the first of them in %s", folder, folder / SHEET)
    return folder


def open_input(config: ConfigDict):
    """The images to edit: `edit.input`, or the split of the source domain."""
    if config.edit.input is not None:
        return FilesSource(config.edit.input)
    return open_split(config, config_lib.sources(config)[0], config.edit.split)


def wanted(config: ConfigDict, source) -> list[int]:
    """The numbers of the images that are edited: of a data set, those whose captions say so.

    Raises:
      ValueError: there is none.
    """
    every = range(len(source))
    if config.edit.input is None:
        texts = captions(source)
        word = pipeline.bare(config.edit.source)
        every = [j for j in every if pipeline.place_of(word, texts[j]) is not None]
        if not every:
            raise ValueError(
                f"no caption of {source!r} holds '{config.edit.source}'; choose another "
                "--config.edit.source, or name images with --config.edit.input"
            )
    return list(every[: config.edit.limit])


def with_sentences(config: ConfigDict) -> ConfigDict:
    """The config with `edit.templates`: of a data set, its own train captions around the word.

    Sentences like those that a small model was trained on; a direction between others is noise.

    Raises:
      ValueError: no caption holds the word, and no sentences are given.
    """
    config, e = config.copy_and_resolve_references(), config.edit
    guided = e.method in pipeline.GUIDED and not (e.source_bank and e.target_bank)
    if e.input is not None or e.templates or not guided or not e.source:
        return config
    train = open_split(config, config_lib.sources(config)[0], "train")
    held = [(text, pipeline.place_of(e.source, text)) for text in captions(train)]
    found = sorted(
        {text[:at] + "{}" + text[at + len(e.source) :] for text, at in held if at is not None}
    )
    if not found:
        raise ValueError(
            f"no train caption holds '{e.source}', so that there are no sentences for a direction; "
            "choose another --config.edit.source, or give --config.edit.source_bank and "
            "target_bank, files of a sentence a line"
        )
    config.edit.templates = tuple(found)
    return config


def output_folder(config: ConfigDict, workdir) -> Path:
    """`config.edit.output`, or WORKDIR/edits/METHOD."""
    e = config.edit
    return Path(workdir) / "edits" / e.method if e.output is None else Path(e.output)


def captions_of(config: ConfigDict, source, todo) -> dict[str, str]:
    """A caption for each image: the given one, the data's own, or the captioner's.

    Raises:
      ValueError: neither is there.
    """
    ids = [source.ids[j] for j in todo]
    if config.edit.caption:
        return dict.fromkeys(ids, config.edit.caption)
    if config.model.captioner is None:
        try:
            return dict(zip(ids, captions(source, todo), strict=True))
        except ValueError as error:
            raise ValueError(
                "config.edit.caption is not given and there is no captioner; say what the image "
                "shows with --config.edit.caption=TEXT or in NAME.txt beside it, or name a BLIP "
                "with --config.model.captioner=DIR"
            ) from error
    folder = Path(config.model.captioner)
    words = folder / "vocab.txt"
    if not words.is_file():
        raise ValueError(f"there is no {words}; a captioner has its words beside its weights")
    vocabulary = words.read_text(encoding="utf-8").splitlines()
    module, params = diffusers.load_blip(folder)
    prompt = [vocabulary.index(word) for word in ("a", "picture", "of")]
    found = {}
    for j, name in zip(todo, ids, strict=True):
        pixels = for_clip(source[j]["image"], module.vision.image_size)
        (row,) = blip.caption_ids(module, params, pixels[None], prompt, beams=3)
        words_ = [vocabulary[i] for i in row if i not in (module.begin, module.end, module.pad)]
        text = " ".join(words_).replace(" ##", "")
        found[name] = text.removeprefix("a picture of ")
        logging.info("%s: %s", name, found[name])
    return found


def for_clip(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[H, W, 3]` → float32 `[size, size, 3]`, normalised as BLIP wants it, stretched."""
    pixels = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    mean, std = (np.array(x, np.float32) for x in (CLIP_MEAN, CLIP_STD))
    return (np.asarray(pixels, np.float32) / 255 - mean) / std


def _record(config: ConfigDict, loaded: pipeline.Model) -> dict:
    """What decides the pixels."""
    plain = json.loads(config.to_json_best_effort())
    for key in ("input", "output", "batch_size", "limit", "templates"):
        plain["edit"].pop(key)
    record = {"edit": plain["edit"], "dtype": config.dtype, "weights": loaded.digests}
    record["captioner"] = config.model.captioner
    if config.edit.method in pipeline.GUIDED:
        # The sentences, not the names of their files.
        said = json.dumps(pipeline.banks(config.edit))
        record["banks_sha256"] = hashlib.sha256(said.encode()).hexdigest()
    return record


def _sheet(e: ConfigDict, source, folder: Path, names, shown) -> None:
    rows = [
        [
            resize(source[j]["image"], e.image_size),
            decode(folder / RECONSTRUCTION / names[j], names[j]),
            decode(folder / names[j], names[j]),
        ]
        for j in shown
    ]
    titles = ["source", RECONSTRUCTED, e.method]
    write_png(folder / SHEET, contact_sheet(rows, titles, blocks=1 if len(rows) < 5 else 2))
