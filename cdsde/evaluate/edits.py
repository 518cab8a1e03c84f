"""`--mode=eval` of edits by words: what was asked for (CLIP), and what was to stay as it is.

Every picture is read from the file that `--mode=edit` wrote. A metric whose network has no weights
is left out; so are those of the background where nothing says which part of a picture it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import metrics
from cdsde.data import captions, decode, eval_batches, resize, tokenizer, write_png
from cdsde.data.inputs import open_split
from cdsde.edit import pipeline
from cdsde.edit import run as edit_run
from cdsde.editing import attention_masks
from cdsde.evaluate import extractors, translations
from cdsde.runtime import mesh, trees
from cdsde.runtime.records import output_names
from cdsde.weights import diffusers

BATCH = 8
FEWEST = 8  # images of a word, for their mean
TITLE = "the edit"


def evaluate_edits(config: ConfigDict, workdir) -> dict[str, dict]:
    """Evaluate the edits by `config.edit.method`, or by each editor of `config.eval.methods`.

    Writes WORKDIR/eval/METHOD/{metrics.json, metrics.csv, per_image.csv} and, for several methods,
    WORKDIR/eval/sheet.png with their edits side by side. Prints the table.

    Returns:
      `{method: {"CLIP score": {"value", "low", "high", "images"}, ...}}`.

    Raises:
      ValueError: edits are missing or of another size, or weights or masks are not what they
        should be.
    """
    methods = config_lib.eval_methods(config)
    config = as_translation(config)
    source = edit_run.open_input(config)
    wanted = edit_run.wanted(config, source)
    originals = translations.resized(config, source)
    how: dict = {"weights": {}}
    networks = translations.lpips(config)
    judges = _judges(config, workdir, source, wanted, originals, networks, how)
    pairwise = translations.pairwise_metrics(networks)
    results, columns = {}, {"source": originals}
    for method in methods:
        config.edit.method = method
        folder = edit_run.output_folder(config, workdir)
        per_image = translations.measure(config, source, None, folder, pairwise, wanted)
        read = translations.written(config, source, folder)
        back = translations.written(config, source, folder / edit_run.RECONSTRUCTION)
        columns |= {edit_run.RECONSTRUCTED: columns.get(edit_run.RECONSTRUCTED, back), method: read}
        for name, judge in judges.items():
            per_image[name] = _of_each(judge, read, wanted)
        results[method] = translations.summarise(per_image, config.eval.bootstrap, config.eval.seed)
        if jax.process_index() == 0:
            translations.write(config, workdir, method, per_image, results[method], how, folder)
    if jax.process_index() > 0:
        return results
    print(translations.render(results, title=TITLE), flush=True)
    if len(methods) > 1 and config.sample.sheet:
        path = Path(workdir) / "eval" / "sheet.png"
        write_png(path, translations.comparison(wanted[: config.sample.sheet], columns))
        logging.info("edits side by side in %s", path)
    return results


def as_translation(config: ConfigDict) -> ConfigDict:
    """The config with an edit's reading of images in place of a translation's."""
    config = config.copy_and_resolve_references()
    config.data.update(image_size=config.edit.image_size, filter=edit_run.FILTER, fit="crop")
    return config


def _of_each(judge: Callable, read: Callable, wanted: list[int]) -> np.ndarray:
    """`judge(pictures, numbers) -> [b]` of every picture, `[N]`; each process its share."""
    mine, values = list(mesh.share(len(wanted))), []
    for at in range(0, len(mine), BATCH):
        chosen = [wanted[n] for n in mine[at : at + BATCH]]
        pictures = np.stack([read(j) for j in chosen])
        filled = np.concatenate([pictures, np.repeat(pictures[-1:], BATCH - len(chosen), 0)])
        numbers = chosen + chosen[-1:] * (BATCH - len(chosen))
        values.append(np.asarray(judge(filled, numbers), np.float64)[: len(chosen)])
    return mesh.gather_rows(np.concatenate(values), mine)


def _judges(config, workdir, source, wanted, originals, networks, how) -> dict[str, Callable]:
    """`{metric: judge}` of what `config.eval` names weights for; `how` is told what they are."""
    e, found = config.eval, {}

    def real(numbers):
        return np.stack([originals(j) for j in numbers])

    if e.clip is not None:
        found["CLIP score"] = _clip(e.clip, e.text or config.edit.target, how)
    if e.dino is not None:
        dino = extractors.load("dino_vitb8", e.dino)
        how["weights"]["dino_vitb8"] = dino.hash
        distance = jax.jit(metrics.structure_distance)
        found["structure distance"] = lambda made, numbers: distance(
            dino(made)["keys"], dino(real(numbers))["keys"]
        )
    if (judge := _direction(config, real, how)) is not None:
        found["EffNetLite0 direction"] = judge
    how["weights"] |= {title: network.hash for title, network in networks.items()}
    objects = _masks(config, workdir, source, wanted, how) if networks else None
    for title, network in networks.items() if objects is not None else ():

        def of_background(made, numbers, network=network):
            mask = np.stack([objects[j] for j in numbers])
            both = (metrics.background(x, mask) for x in (made, real(numbers)))
            return network(*both)["distance"]

        found[f"BG-{title}"] = of_background
    return found


def _direction(config, real: Callable, how: dict) -> Callable | None:
    """Whether an edit goes where the images of the one word lie from those of the other.

    By the train split's captions; None where there are none, or too few images for a mean.
    """
    if config.edit.input is not None:
        return None
    train = open_split(config, config_lib.sources(config)[0], "train")
    texts, read = captions(train), translations.resized(config, train)
    extractor = extractors.load("efficientnet_lite0")

    def seen(pictures):
        return np.asarray(extractor(pictures)["pooled"], np.float64)

    means = []
    for concept in (config.edit.source, config.edit.target):
        words = pipeline.bare(concept)
        has = [j for j, text in enumerate(texts) if pipeline.place_of(words, text) is not None]
        if len(has) < FEWEST:
            logging.info("%d train images say '%s': no direction is measured", len(has), words)
            return None
        means.append(_of_each(lambda pictures, _: seen(pictures), read, has).mean(0))
        how.setdefault("direction", {})[words] = len(has)
    how["weights"]["efficientnet_lite0"] = extractor.hash
    direction = means[1] - means[0]

    def judge(made, numbers):
        return metrics.directional_similarity(seen(made), seen(real(numbers)), direction)

    return judge


def _clip(folder: str, text: str, how: dict) -> Callable:
    """Cosine with the text, by the CLIP of a folder."""
    module, params = diffusers.load_clip(folder)
    how["weights"]["clip"] = trees.digest(params)
    how["text"] = text
    ids = tokenizer.load(folder)([text])
    words = module.apply(params, ids, method="embed_text")
    mean, std = (np.array(x, np.float32) for x in (edit_run.CLIP_MEAN, edit_run.CLIP_STD))
    size = module.vision.image_size

    @jax.jit
    def cosine(params, pixels):
        images = module.apply(params, pixels, method="embed_image")
        return metrics.clip_score(images, jnp.broadcast_to(words, images.shape))

    def judge(made, numbers):
        small = np.stack([resize(picture, size, filter="bicubic") for picture in made])
        return cosine(params, (small.astype(np.float32) / 255 - mean) / std)

    return judge


def _masks(config, workdir, source, wanted, how) -> dict[int, np.ndarray] | None:
    """Objects by number of the image, bool `[S, S]`: given ones, or where the model looks."""
    names, size = output_names(source.ids), config.edit.image_size
    if config.eval.masks is not None:
        folder = Path(config.eval.masks)
        if missing := [names[j] for j in wanted if not (folder / names[j]).is_file()]:
            raise ValueError(
                f"config.eval.masks={folder} has no {missing[0]}; it holds a PNG of each image's "
                "name, white where the object is"
            )
        how["masks"] = str(folder)
    elif config.model.path is not None:
        folder = _looked_up(config, workdir, source, wanted, names)
        how["masks"] = "cross-attention of the source to the word"
    else:
        return None

    def read(name):
        mask = resize(decode(folder / name, name), size, filter="bilinear")
        return mask[..., 0] > 127

    return {j: read(names[j]) for j in wanted}


def _looked_up(config, workdir, source, wanted, names) -> Path:
    """The folder of masks by cross-attention, made where they are missing."""
    loaded = pipeline.load(config.model.path)
    e, devices = config.edit, mesh.make_mesh(jax.local_devices())
    spoken = edit_run.captions_of(config, source, wanted)
    said = [list(spoken.values()), e.source, e.image_size, e.steps, loaded.digests]
    name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
    folder = Path(workdir) / "eval" / f"masks-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    run = jax.jit(pipeline.word_maps(loaded, e))
    params = mesh.put_replicated(loaded.params, devices)
    words = pipeline.bare(e.source)
    mine = [wanted[n] for n in mesh.share(len(wanted))]
    by_id = dict(zip(source.ids, names, strict=True))
    batches = eval_batches(
        source,
        image_size=e.image_size,
        batch_size=mesh.round_up(e.batch_size, devices),
        filter=edit_run.FILTER,
        indices=[j for j in mine if not (folder / names[j]).exists()],
    )
    for batch in batches:
        texts = [spoken[name] for name in batch["name"]]
        where = [tokenizer.word_positions(loaded.encoder.tokenize, text, words) for text in texts]
        rows = (batch["image"], loaded.encoder(texts), np.stack(where))
        found = mesh.local_rows(run(params, *mesh.put_batch(rows, devices)))
        found = attention_masks.enlarged(found, e.image_size)
        for name, mask, real in zip(batch["name"], found, batch["mask"], strict=True):
            if real:
                write_png(folder / by_id[name], np.repeat(np.uint8(255) * mask[..., None], 3, -1))
    mesh.barrier("masks")
    return folder
