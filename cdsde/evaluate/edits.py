"""`--mode=eval` for edits by words: agreement with the text, and preservation of the rest.

Every image is read from the file that `--mode=edit` wrote. A metric whose network has no weights is
left out, and metrics of the background are left out without object masks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import metrics
from cdsde.config import checks
from cdsde.data import (
    captions,
    content,
    decode,
    eval_batches,
    inputs,
    resize,
    tokenizer,
    told_by,
    write_png,
)
from cdsde.edit import pipeline, wording
from cdsde.edit import run as edit_run
from cdsde.editing import attention_masks
from cdsde.evaluate import extractors, recorded, translations
from cdsde.runtime import compiler, files, mesh, records, trees
from cdsde.runtime.padding import pad
from cdsde.weights import diffusers, hub

BATCH = 8
FEWEST = 8  # images per word, to compute a mean
TITLE = "the edit"
COLOUR = 32  # difference of an object mask's channels, of 255, beyond what compression makes
BACKGROUND = ("MSE", "PSNR", "SSIM")  # beside LPIPS, where masks are given
MASKED = "the data's own"


def evaluate_edits(config: ConfigDict, workdir) -> dict[str, dict]:
    """Evaluate the edits by `config.method`, or by each editor of `config.eval.methods`.

    Writes WORKDIR/eval/METHOD/{metrics.json, metrics.csv, per_image.csv} and, for several methods,
    WORKDIR/eval/sheet.png with their edits side by side. Prints the table.

    Returns:
      `{method: {"CLIP score": {"value", "low", "high", "images"}, ...}}`.

    Raises:
      ValueError: edits are missing, of other settings or of another size, or weights or masks are
        missing or invalid.
    """
    methods = config_lib.eval_methods(config)
    checks.check_measures(config)
    source = inputs.open_input(config)
    chosen = edit_run.chosen_images(config, source)
    originals = translations.resized(config, source)
    configs = {method: translations.of_method(config, method) for method in methods}
    folders = {method: records.output_folder(c, workdir) for method, c in configs.items()}
    for method, folder in folders.items():
        recorded.check(config, method, workdir, folder, source)
    networks = translations.lpips(config)
    judges, record = _judges(config, workdir, source, chosen, originals, networks)
    pairwise = translations.pairwise_metrics(networks)
    results, columns = {}, {"source": originals}
    for method, folder in folders.items():
        config_of_method = configs[method]
        per_image = translations.measure(
            config_of_method, source, None, folder, pairwise, chosen=chosen
        )
        read = translations.written(config, source, folder)
        reconstructed = translations.written(config, source, folder / edit_run.RECONSTRUCTION)
        columns.setdefault(edit_run.RECONSTRUCTED, reconstructed)
        columns[method] = read
        for name, judge in judges.items():
            per_image[name] = _measure_each(judge, read, chosen)
        results[method] = translations.summarise(per_image, config.eval.bootstrap)
        if jax.process_index() == 0:
            summary = results[method]
            translations.write(config_of_method, workdir, per_image, summary, record, folder)
    if jax.process_index() > 0:
        return results
    print(translations.render(results, title=TITLE), flush=True)
    if len(methods) > 1 and config.sample.sheet:
        path = Path(workdir) / "eval" / records.SHEET
        write_png(path, translations.comparison(chosen[: config.sample.sheet], columns))
        logging.info("edits side by side in %s", path)
    return results


def _measure_each(judge: Callable, read: Callable, chosen: list[int]) -> np.ndarray:
    """`judge(pictures, numbers) -> [b]` for every image, `[N]`; each process measures its share."""
    mine, values = list(mesh.share(len(chosen))), []
    for start in range(0, len(mine), BATCH):
        numbers = np.array([chosen[n] for n in mine[start : start + BATCH]])
        pictures = np.stack([read(j) for j in numbers])
        filled = pad((pictures, numbers), BATCH)
        values.append(np.asarray(judge(*filled), np.float64)[: len(numbers)])
    return mesh.gather_rows(np.concatenate(values), mine)


def _judges(config, workdir, source, chosen, originals, networks) -> tuple[dict, dict]:
    """`({metric: judge}, record)`: the metrics that have weights, and their settings."""
    e = config.eval
    judges: dict[str, Callable] = {}
    record: dict = {"weights": {title: network.hash for title, network in networks.items()}}

    def real(numbers):
        return np.stack([originals(j) for j in numbers])

    own = edit_run.has_words(source)
    masks = _masks(config, workdir, source, chosen) if networks or own or e.masks else None
    if e.clip is not None:
        texts = [e.text or (source.edit(j)[1] if own else config.edit.target) for j in chosen]
        record["text"] = texts[0] if len(set(texts)) == 1 else "the data's edited texts"
        score_of, record["weights"]["clip"] = _clip(e.clip)
        score = judges["CLIP score"] = score_of(dict(zip(chosen, texts, strict=True)))
        if own:
            unedited = score_of({j: source.caption(j) for j in chosen})
            judges["CLIP score of the source"] = lambda edited, numbers: unedited(
                real(numbers), numbers
            )
        if own and masks is not None:
            judges["CLIP score of the edited region"] = _edited_region(score, masks[0])
    if e.dino is not None:
        dino = extractors.load("dino_vitb8", e.dino)
        record["weights"]["dino_vitb8"] = dino.hash
        judges["structure distance"] = _structure(dino, real)
    if (measured := _direction(config, real, own)) is not None:
        judges["EffNetLite0 direction"], record["direction"], digest = measured
        record["weights"]["efficientnet_lite0"] = digest
    if masks is not None:
        objects, record["masks"] = masks
        for title, metric in translations.pairwise_metrics(networks).items():
            if title in networks or (title in BACKGROUND and (own or e.masks)):
                judges[f"BG-{title}"] = _background(metric, objects, real)
    return judges, record


def _structure(dino: extractors.Extractor, real: Callable) -> Callable:
    distance = compiler.jit(metrics.structure_distance)
    return lambda edited, numbers: distance(dino(edited)["keys"], dino(real(numbers))["keys"])


def _background(metric: Callable, objects: dict, real: Callable) -> Callable:
    """A metric of the background, where the object is black; nan where there is no background."""

    def judge(edited, numbers):
        mask = np.stack([objects[j] for j in numbers])
        both = (metrics.background(x, mask) for x in (edited, real(numbers)))
        return np.where(mask.all((1, 2)), np.nan, metric(*both))

    return judge


def _edited_region(score: Callable, objects: dict) -> Callable:
    """The CLIP score of the edit where all but the object is black."""

    def judge(edited, numbers):
        mask = np.stack([objects[j] for j in numbers])
        return score(metrics.background(edited, ~mask), numbers)

    return judge


def _direction(config, real: Callable, own_words: bool) -> tuple[Callable, dict, str] | None:
    """Cosine of an edit's feature change with the direction between the two words' mean features.

    The means are over train images whose captions contain the words.

    Returns:
      `(judge, {word: number of images}, hash of the network)`; None for images outside a data set,
      with words of their own, or with fewer than `FEWEST` images of a word.
    """
    if config.sample.input is not None or own_words:
        return None
    train = inputs.open_split(config, config_lib.sources(config)[0], "train")
    read = translations.resized(config, train)
    extractor = extractors.load("efficientnet_lite0")

    def features(pictures):
        return np.asarray(extractor(pictures)["pooled"], np.float64)

    means, counts = [], {}
    for concept in (config.edit.source, config.edit.target):
        words = wording.bare(concept)
        said = wording.holds(words)
        matching = [j for j, text in enumerate(captions(train, wanted=said)) if said(text)]
        if len(matching) < FEWEST:
            logging.info("%d train images say '%s': no direction is measured", len(matching), words)
            return None
        means.append(_measure_each(lambda pictures, _: features(pictures), read, matching).mean(0))
        counts[words] = len(matching)
    direction = means[1] - means[0]

    def judge(edited, numbers):
        return metrics.directional_similarity(features(edited), features(real(numbers)), direction)

    return judge, counts, extractor.hash


def _clip(folder: str) -> tuple[Callable, str]:
    """`score_of({position: text})` is the CLIP score with each image's text; and CLIP's digest."""
    path = hub.local(folder, "network")
    module, params = diffusers.load_clip(path)
    tokenize = tokenizer.load(path)
    embed = compiler.jit(lambda params, ids: module.apply(params, ids, method="embed_text"))
    mean, std = (np.array(x, np.float32) for x in (edit_run.CLIP_MEAN, edit_run.CLIP_STD))
    size = module.vision.image_size

    @compiler.jit
    def cosine(params, pixels, texts):
        images = module.apply(params, pixels, method="embed_image")
        return metrics.clip_score(images, texts)

    def score_of(texts: dict[int, str]) -> Callable:
        distinct = list(dict.fromkeys(texts.values()))
        ids = tokenize(distinct)
        parts = [ids[n : n + BATCH] for n in range(0, len(ids), BATCH)]
        words = [np.asarray(embed(params, pad(part, BATCH)))[: len(part)] for part in parts]
        rows = dict(zip(distinct, np.concatenate(words), strict=True))

        def judge(pictures, numbers):
            small = np.stack([resize(picture, size, filter="bicubic") for picture in pictures])
            pixels = (small.astype(np.float32) / 255 - mean) / std
            return cosine(params, pixels, np.stack([rows[texts[j]] for j in numbers]))

        return judge

    return score_of, trees.digest(params)


def _masks(config, workdir, source, chosen) -> tuple[dict[int, np.ndarray], str] | None:
    """`({position of the image: object mask bool [S, S]}, origin of the masks)`, or None.

    The masks are those of `config.eval.masks`, the data's own, or thresholded cross-attention maps
    of the model.
    """
    names, size = records.output_names(source.ids), config.data.image_size
    if config.eval.masks is not None:
        folder = Path(config.eval.masks)
        if missing := [names[j] for j in chosen if not (folder / names[j]).is_file()]:
            raise ValueError(
                f"config.eval.masks={folder} has no {missing[0]}; it holds a PNG of each image's "
                "name, white where the object is"
            )
        about = str(folder)
    elif edit_run.has_words(source):
        return {j: source.mask(j, size) for j in chosen}, MASKED
    elif config.model.path is not None:
        folder = _attention_masks(config, workdir, source, chosen, names)
        about = "cross-attention of the source to the word"
    else:
        return None

    def read(name):
        picture = decode(folder / name, name)
        if (np.ptp(picture, axis=-1) > COLOUR).any():
            raise ValueError(
                f"{folder / name} is a picture in colour; a mask (config.eval.masks) is white "
                "where the object is, and black elsewhere"
            )
        return resize(picture, size, "bilinear", config.data.fit)[..., 0] > 127

    return {j: read(names[j]) for j in chosen}, about


def _attention_masks(config, workdir, source, chosen, names) -> Path:
    """The folder of masks by cross-attention; missing masks are computed."""
    model = pipeline.load(config.model.path)
    e, size, devices = config.edit, config.data.image_size, mesh.make_mesh(jax.local_devices())
    texts = edit_run.captions_of(config, source, chosen)
    decisive = [list(texts.values()), e.source, size, e.steps, e.inversion]
    decisive += [model.digests, model.files, config.data.filter, config.data.fit]
    name = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:8]
    folder = Path(workdir) / "eval" / f"masks-{name}"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    run = compiler.jit(pipeline.word_maps(model, e))
    params = mesh.put_replicated(model.params, devices)
    words = wording.bare(e.source)
    mine = [chosen[n] for n in mesh.share(len(chosen))]
    by_id = {source.ids[j]: (names[j], j) for j in mine}
    batches = eval_batches(
        source,
        inputs.reading(config),
        batch_size=mesh.round_up(config.sample.batch_size, devices),
        indices=[
            j
            for j in mine
            if (told_by(folder / names[j]) or {}).get("source") != content(source, j)
        ],
    )
    for batch in batches:
        captions_of_batch = [texts[name] for name in batch["name"]]
        positions = [
            tokenizer.word_positions(model.encoder.tokenize, text, words)
            for text in captions_of_batch
        ]
        rows = (batch["image"], model.encoder(captions_of_batch), np.stack(positions))
        maps = mesh.local_rows(run(params, *mesh.put_batch(rows, devices)))
        masks = attention_masks.enlarged(maps, size)
        for row in np.flatnonzero(batch["mask"]):
            picture = np.repeat(np.uint8(255) * masks[row][..., None], 3, -1)
            mask, j = by_id[batch["name"][row]]
            write_png(folder / mask, picture, source=content(source, j))
    mesh.barrier("masks")
    return folder
