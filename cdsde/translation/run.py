"""`--mode=sample`: translate images into one PNG each, for folders of any size.

Each process takes its share of the images and splits batches over its devices. An interrupted run
continues where it stopped: results of the same images are not made again. Each result tells the
content of its source image, so that a picture that was replaced under its name is translated again.
A folder with results of other settings is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from cdsde import config as config_lib
from cdsde.data import (
    BrokenImage,
    contact_sheet,
    content,
    decode,
    eval_batches,
    image_id,
    inputs,
    to_uint8,
    told_by_whole,
    write_png,
)
from cdsde.runtime import mesh, records
from cdsde.translation import film, tiles
from cdsde.translation.compiled import Sampler, load_sampler


def sample(config: ConfigDict, workdir, loaded: tuple[Sampler, dict] | None = None) -> Path:
    """Translate every input image; returns the folder of the results.

    Args:
      config: the task.
      workdir: the folder of its networks and, by default, of its results.
      loaded: the result of `load_sampler` for this config, if it is loaded already.

    Raises:
      ValueError: a network has no weights, the folder holds results of other settings, or images
        cannot be decoded; then the others are translated before it is raised.
    """
    if config.sample.trajectory and config.method in config_lib.GANS:
        raise ValueError(
            f"config.sample.trajectory is True, and {config.method} has no trajectory: it makes a "
            "picture in one pass; set it to False"
        )
    source = inputs.open_input(config)
    folder = records.output_folder(config, workdir)
    sampler, origins = loaded or load_sampler(config, workdir)
    names = records.output_names(source.ids)
    records.claim(folder, records.settings_record(config, origins, source), names)
    chosen = list(range(len(source))[: config.sample.limit])
    mine = chosen[jax.process_index() :: jax.process_count()]
    todo = [j for j in mine if not _finished(config, folder, names[j], source, j)]
    logging.info(
        "%s: %d of %d images to translate, %d network evaluations each, on %d %s device(s)",
        config.method,
        len(todo),
        len(mine),
        sampler.evaluations,
        sampler.devices.size,
        jax.default_backend(),
    )
    translate = _translate_whole if config.sample.keep_size else _translate
    broken = translate(config, sampler, source, folder, names, todo)
    mesh.barrier("sampled")
    shown = _shown(config, source, folder, names, chosen) if jax.process_index() == 0 else []
    if shown:
        write_png(folder / records.SHEET, sheet_of(config, source, folder, names, shown))
        logging.info("results in %s, the first of them in %s", folder, folder / records.SHEET)
    inputs.raise_broken(broken, len(mine))
    return folder


def _shown(config: ConfigDict, source, folder: Path, names, chosen: list[int]) -> list[int]:
    """The first `sample.sheet` images of which the picture and the result can be read."""
    shown = []
    for j in chosen:
        if len(shown) == config.sample.sheet:
            break
        with contextlib.suppress(BrokenImage):  # is listed at the end of the run
            if (folder / names[j]).exists():
                decode(folder / names[j])
                _ = source[j]
                shown.append(j)
    return shown


def _finished(config: ConfigDict, folder: Path, name: str, source, j: int) -> bool:
    """Whether an image's result is written, and its trajectory if the config needs one."""
    if not (folder / name).exists() or not _is_result_of(folder / name, source, j):
        return False
    return not config.sample.trajectory or not film.missing(folder / film.FOLDER, name)


def _is_result_of(path: Path, source, j: int) -> bool:
    """Whether a file is a whole picture, made from the present content of image j of a source.

    Results of earlier versions do not tell, and count as such.
    """
    told = told_by_whole(path)  # a full disk or a copy cuts files short
    return told is not None and told.get("source") in (None, content(source, j))


def _translate(
    config: ConfigDict, sampler, source, folder: Path, names, todo: list[int]
) -> dict[str, str]:
    """Translate the images at positions `todo` of the source, in batches.

    Returns `{id: what is wrong}` of those that cannot be decoded.

    While the devices work on a batch, the host writes the one before and reads the next one.
    """
    devices, read, broken = sampler.devices, inputs.reading(config), {}
    keep = film.FRAMES if config.sample.trajectory else 0
    # A batch is not padded beyond the images that remain to be translated.
    most = max(mesh.round_up(len(todo), devices), devices.size)
    batches = eval_batches(
        source,
        read,
        batch_size=min(mesh.round_up(config.sample.batch_size, devices), most),
        indices=todo,
        broken=broken,
    )
    by_id = {source.ids[j]: (names[j], j) for j in todo}
    with tqdm(total=len(todo), unit="image", desc=config.method, disable=None) as bar:

        def write(batch, fetch):
            y, states = fetch()
            images = to_uint8(y)
            for row in np.flatnonzero(batch["mask"]):
                name, j = by_id[batch["name"][row]]
                inside = read.inside(*batch["shape"][row])
                if keep:
                    frames = states[:, :, row].reshape(-1, *images[row].shape)
                    seen, frames = batch["image"][row][inside], frames[:, *inside]
                    film.write(folder / film.FOLDER, name, seen, frames)
                # Written last: its existence marks the image as finished.
                write_png(folder / name, images[row][inside], source=content(source, j))
                bar.update()

        working = None
        try:
            for batch in batches:
                started = batch, sampler.begin(batch["image"], batch["id"], keep)
                before, working = working, started
                if before:
                    write(*before)
        finally:  # an interruption does not cost those before
            if working:
                write(*working)
    return broken


def _translate_whole(
    config: ConfigDict, sampler, source, folder: Path, names, todo: list[int]
) -> dict[str, str]:
    """Does what `_translate` does at the images' own size, one by one."""
    whole, broken = tiles.Whole(sampler, config), {}
    with tqdm(total=len(todo), unit="image", desc=config.method, disable=None) as bar:
        for j in todo:
            try:
                picture = source[j]["image"]
            except BrokenImage as error:
                broken[source.ids[j]] = error.problem
                continue
            result = whole(picture, image_id(source.ids[j]), bar.set_postfix)
            write_png(folder / names[j], result, source=content(source, j))
            bar.update()
    return broken


def sheet_of(
    config: ConfigDict, source, folder: Path, names: Sequence[str], shown: Sequence[int]
) -> np.ndarray:
    """A uint8 sheet of the images at positions `shown`: source | result | true target, if any."""
    pairs = inputs.open_truth(config)
    rows, small = [], inputs.thumbnail(config)
    for j in shown:
        row = [small(source[j]["image"]), small(decode(folder / names[j], names[j]))]
        if pairs is not None:
            row.append(small(pairs[j]["image"]))
        rows.append(row)
    titles = [
        "source",
        config_lib.title(config.method),
        *(["true target"] if pairs is not None else []),
    ]
    return contact_sheet(rows, titles, blocks=4 if len(rows) > 8 else 1)
