"""`--mode=edit`: edit images by words into one PNG each, and write their reconstructions.

An interrupted run continues where it stopped; an image whose content or caption has changed is
edited again. A folder with results of other settings is refused.
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
from cdsde.config import unused
from cdsde.data import (
    captions,
    contact_sheet,
    content,
    decode,
    eval_batches,
    inputs,
    to_uint8,
    told_by_whole,
    write_png,
)
from cdsde.data.images import BrokenImage
from cdsde.edit import pipeline, wording
from cdsde.edit.wording import Wording
from cdsde.networks.stable_diffusion import blip
from cdsde.runtime import compiler, files, mesh, records
from cdsde.weights import diffusers, hub

RECONSTRUCTION = "reconstructions"  # folder within the results
RECONSTRUCTED = "reconstruction"  # title of its column on sheets
# Keys that records have only where the editor reads them.
OF_FEW = ("skip", "source_scale", "threshold", "cross_attention", "exchange", "attention_side")
OF_FEW += ("reweight", "blend")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def edit(config: ConfigDict, workdir) -> Path:
    """Edit every input image; returns the folder of the results.

    Raises:
      ValueError: model, input, source, target or caption is not given, a part of the model is
        missing, the folder holds results of other settings, or images cannot be decoded; then the
        others are edited before it is raised.
    """
    source = inputs.open_input(config)
    _check(config, source)
    folder = records.output_folder(config, workdir)
    model = pipeline.load(config.model.path, jnp.dtype(config.dtype), config.remat)
    halvings = 2 ** (len(model.vae.widths) + len(model.unet.widths) - 2)
    if config.data.image_size % halvings:
        raise ValueError(
            f"config.data.image_size is {config.data.image_size}; the model takes multiples of "
            f"{halvings}"
        )
    pipeline.check_levels(model, config)
    names = records.output_names(source.ids)
    chosen = chosen_images(config, source)
    if not has_words(source):
        config = with_sentences(config)
    mine = chosen[jax.process_index() :: jax.process_count()]
    todo = [j for j in mine if not _finished(config, folder / names[j], source, j)]
    broken = {} if config.edit.caption else _without_broken(config, source, todo)
    said = wordings_of(config, source, todo)
    texts = wording.texts_of(model, config, list(said.values())) if todo else None
    records.claim(folder, record_of(config, model), names)
    if texts is not None:
        broken |= _edit(config, model, source, folder, names, said, texts, todo)
    mesh.barrier("edited")
    shown = [j for j in chosen if (folder / names[j]).exists()][: config.sample.sheet]
    if jax.process_index() == 0 and shown:
        _write_sheet(config, source, folder, names, shown)
        logging.info("results in %s, the first of them in %s", folder, folder / records.SHEET)
    inputs.raise_broken(broken, len(mine))
    return folder


def _without_broken(config: ConfigDict, source, todo: list[int]) -> dict[str, str]:
    """Removes the images that cannot be decoded from `todo`, where a captioner is to read them.

    Returns:
      `{id: what is wrong}` of these images.
    """
    broken = {}
    for j in list(todo) if config.model.captioner is not None else ():
        try:
            source[j]
        except BrokenImage as error:
            broken[source.ids[j]] = error.problem
            todo.remove(j)
    return broken


def _check(config: ConfigDict, source) -> None:
    e = config.edit
    required = {"model.path": config.model.path}
    if not has_words(source):
        required |= {"edit.source": e.source, "edit.target": e.target}
    elif e.caption or config.model.captioner is not None:
        raise ValueError(
            f"{source!r} has a caption for each image; set config.edit.caption and "
            "config.model.captioner to None"
        )
    for key in ("source_bank", "target_bank"):
        if e[key] is not None and config.method not in pipeline.GUIDED:
            raise ValueError(
                f"config.edit.{key} is '{e[key]}', and config.method is '{config.method}', which "
                "has no direction of sentences; leave it out, or choose "
                f"{' or '.join(pipeline.GUIDED)}"
            )
    for key, value in required.items():
        if not (value or "").strip():
            raise ValueError(f"config.{key} is not given; --mode=edit needs it")


def _finished(config: ConfigDict, path: Path, source, j: int) -> bool:
    """Whether an image's result is written whole, from its present content and caption.

    Results of earlier versions do not tell, and count as such.
    """
    if told_by_whole(path.parent / RECONSTRUCTION / path.name) is None:
        return False
    if (told := told_by_whole(path)) is None:
        return False
    if told.get("source") not in (None, content(source, j)):
        return False
    if "caption" not in told or config.edit.caption or config.model.captioner is not None:
        return True  # the record and the image determine the caption
    (words,) = wordings_of(config, source, [j]).values()
    return told.items() >= words.told().items()


def _edit(
    config, model, source, folder: Path, names, said, texts, todo: list[int]
) -> dict[str, str]:
    """Edit the images at positions `todo`, in batches; row n of `texts` belongs to `todo[n]`.

    `said` is `{image id: words}`. Returns `{id: what is wrong}` of those that cannot be decoded.
    """
    broken = {}
    text_rows = {source.ids[j]: n for n, j in enumerate(todo)}
    devices = mesh.make_mesh(jax.local_devices())
    params = mesh.put_replicated(model.params, devices)
    run = compiler.jit(pipeline.program(model, config))
    key = mesh.put_replicated(jax.random.key(config.sample.seed), devices)
    read = inputs.reading(config)
    batches = eval_batches(
        source,
        read,
        batch_size=mesh.round_up(min(config.sample.batch_size, len(todo)), devices),
        indices=todo,
        broken=broken,
    )
    by_id = {source.ids[j]: (names[j], j) for j in todo}
    with tqdm(total=len(todo), unit="image", desc=config.method, disable=None) as bar:
        for batch in batches:
            positions = [text_rows[name] for name in batch["name"]]
            rows = jax.tree.map(lambda x, positions=positions: np.asarray(x)[positions], texts)
            images, rows, ids = mesh.put_batch((batch["image"], rows, batch["id"]), devices)
            results = [mesh.local_rows(x) for x in run(params, images, rows, key, ids)]
            for row in np.flatnonzero(batch["mask"]):
                inside = read.inside(*batch["shape"][row])
                edited, reconstructed = (to_uint8(result[row])[inside] for result in results)
                name, j = by_id[batch["name"][row]]
                told = {"source": content(source, j), **said[source.ids[j]].told()}
                # The result last: its existence marks the image as finished.
                write_png(folder / RECONSTRUCTION / name, reconstructed)
                write_png(folder / name, edited, **told)
                bar.update()
    return broken


def chosen_images(config: ConfigDict, source) -> list[int]:
    """Positions of the images to edit; in a data set, those of which a caption contains the word.

    Where the data have words of their own, all images are edited.

    Raises:
      ValueError: there is none.
    """
    positions = list(range(len(source)))
    if config.sample.input is None and not has_words(source):
        said = wording.holds(wording.bare(config.edit.source))
        positions = [j for j, text in enumerate(captions(source, wanted=said)) if said(text)]
        if not positions:
            raise ValueError(
                f"no caption of {source!r} holds '{config.edit.source}'; choose another "
                "--config.edit.source, or name images with --config.sample.input"
            )
    return positions[: config.sample.limit]


def with_sentences(config: ConfigDict) -> ConfigDict:
    """The config with `edit.templates`; for a data set, its train captions with the word cut out.

    A small model needs sentences like its training captions: in others, the difference of two
    concepts is noise.

    Raises:
      ValueError: no train caption contains the word, and the config gives no sentences.
    """
    config, e = config.copy_and_resolve_references(), config.edit
    needs_bank = config.method in pipeline.GUIDED and not (e.source_bank and e.target_bank)
    if config.sample.input is not None or e.templates or not needs_bank:
        return config
    train = inputs.open_split(config, config_lib.sources(config)[0], "train")
    texts = captions(train, wanted=wording.holds(e.source))
    matches = [(text, wording.place_of(e.source, text)) for text in texts]
    templates = sorted(
        {text[:n] + "{}" + text[n + len(e.source) :] for text, n in matches if n is not None}
    )
    if not templates:
        raise ValueError(
            f"no train caption holds '{e.source}', so that there are no sentences for a direction; "
            "choose another --config.edit.source, or give --config.edit.source_bank and "
            "target_bank, files of a sentence a line"
        )
    config.edit.templates = tuple(templates)
    return config


def has_words(source) -> bool:
    """Whether the data say for each image what changes, as PIE-Bench does."""
    return hasattr(source, "edit")


def wordings_of(config: ConfigDict, source, todo: list[int]) -> dict[str, Wording]:
    """`{image id: its words}`: the data's own, or its caption with `config.edit.source`, `target`.

    Raises:
      ValueError: as `captions_of`.
    """
    if has_words(source):
        p2p = config.method == "p2p"  # other editors know no place
        return {
            source.ids[j]: Wording(*source.edit(j), source.blended(j) if p2p else ()) for j in todo
        }
    said = captions_of(config, source, todo)
    return {name: wording.of_caption(config.edit, caption) for name, caption in said.items()}


def captions_of(config: ConfigDict, source, todo: list[int]) -> dict[str, str]:
    """`{image id: caption}`: `config.edit.caption`, or the captioner's, or the data set's.

    Raises:
      ValueError: there is no caption, no captioner, and none in the data set.
    """
    ids, word = [source.ids[j] for j in todo], (config.edit.source or "").strip()
    said = wording.holds(wording.bare(word)) if word else lambda caption: True
    if config.edit.caption:
        return dict.fromkeys(ids, config.edit.caption)
    if config.model.captioner is not None:
        return _captioned(hub.local(config.model.captioner, "network"), source, todo)
    try:
        return dict(zip(ids, captions(source, todo, said), strict=True))
    except ValueError as error:
        raise ValueError(
            "config.edit.caption is not given and there is no captioner; say what the image "
            "shows with --config.edit.caption=TEXT or in NAME.txt beside it, or name a BLIP "
            "with --config.model.captioner=DIR"
        ) from error


def _captioned(folder: Path, source, todo: list[int]) -> dict[str, str]:
    """`{image id: caption}` by the BLIP model in a folder."""
    path = folder / "vocab.txt"
    if not path.is_file():
        raise ValueError(f"there is no {path}; a captioner has its words beside its weights")
    vocabulary = files.read_text(path, "get the file again").splitlines()
    module, params = diffusers.load_blip(folder)
    prompt = [vocabulary.index(word) for word in ("a", "picture", "of")]
    texts = {}
    for j in todo:
        name = source.ids[j]
        pixels = for_clip(source[j]["image"], module.vision.image_size)
        (row,) = blip.caption_ids(module, params, pixels[None], prompt, beams=3)
        words = [vocabulary[i] for i in row if i not in (module.begin, module.end, module.pad)]
        texts[name] = " ".join(words).replace(" ##", "").removeprefix("a picture of ")
        logging.info("%s: %s", name, texts[name])
    return texts


def for_clip(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[H, W, 3]` → float32 `[size, size, 3]`, stretched; scaled by CLIP's mean and std."""
    pixels = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    mean, std = (np.array(x, np.float32) for x in (CLIP_MEAN, CLIP_STD))
    return (np.asarray(pixels, np.float32) / 255 - mean) / std


def record_of(config: ConfigDict, model: pipeline.Model) -> dict:
    """The settings that determine the pixels of the results."""
    settings = json.loads(config.edit.to_json_best_effort())
    settings.pop("templates")
    for key in OF_FEW:
        if config.method not in unused.READERS[f"edit.{key}"]:
            settings.pop(key)  # so that records of earlier versions match
    if config.method == "p2p":  # which read it in earlier versions
        settings["strength"] = 1.0
    s = config.sample
    settings |= {"method": config.method, "split": s.split, "seed": s.seed}
    settings["image_size"] = config.data.image_size
    record = {"edit": settings, "dtype": config.dtype, "weights": model.digests}
    record["model_files"] = model.files
    record["captioner"] = config.model.captioner
    record["data"] = {"filter": config.data.filter, "fit": config.data.fit}
    if config.method in pipeline.GUIDED:
        # Hashes the sentences, not the names of their files.
        sentences = json.dumps(wording.banks(config.edit))
        record["banks_sha256"] = hashlib.sha256(sentences.encode()).hexdigest()
    return record


def _write_sheet(config: ConfigDict, source, folder: Path, names, shown: list[int]) -> None:
    small = inputs.thumbnail(config)
    rows = [
        [
            small(source[j]["image"]),
            decode(folder / RECONSTRUCTION / names[j], names[j]),
            decode(folder / names[j], names[j]),
        ]
        for j in shown
    ]
    titles = ["source", RECONSTRUCTED, config.method]
    sheet = contact_sheet(rows, titles, blocks=1 if len(rows) < 5 else 2)
    write_png(folder / records.SHEET, sheet)
