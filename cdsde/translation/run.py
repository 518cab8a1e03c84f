"""`--mode=sample`: images → solver → one PNG each, for folders of any size.

Work is cut into batches over this process's devices; each process takes its share of the list. A
run that was cut off goes on where it stopped, since finished files are left alone; a folder that
holds results of other settings is refused rather than mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from cdsde import config as config_lib
from cdsde.data import contact_sheet, decode, eval_batches, inputs, to_uint8, write_png
from cdsde.runtime import mesh, records
from cdsde.translation import film
from cdsde.translation.compiled import Sampler, load_sampler


def sample(config: ConfigDict, workdir, loaded: tuple[Sampler, dict] | None = None) -> Path:
    """Translate every input image; returns the folder of the results.

    Args:
      config: the task.
      workdir: where its networks are, and by default its results.
      loaded: `load_sampler`'s result where there is one already, of this config.

    Raises:
      ValueError: no weights, a broken image (named), or results of other settings in the way.
    """
    if config.sample.trajectory and config.method in config_lib.GANS:
        raise ValueError(
            f"config.sample.trajectory is True, and {config.method} has no trajectory: it makes a "
            "picture in one pass; leave it out"
        )
    source = inputs.open_input(config)
    folder = records.output_folder(config, workdir)
    sampler, origins = loaded or load_sampler(config, workdir)
    names = records.output_names(source.ids)
    records.claim(folder, records.settings_record(config, origins, source), names)
    chosen = list(range(len(source))[: config.sample.limit])
    mine = chosen[jax.process_index() :: jax.process_count()]
    todo = [j for j in mine if not _finished(config, folder, names[j])]
    logging.info(
        "%s: %d of %d images to translate, %d network evaluations each, on %d %s device(s)",
        config.method,
        len(todo),
        len(mine),
        sampler.evaluations,
        sampler.devices.size,
        jax.default_backend(),
    )
    _translate(config, sampler, source, folder, names, todo)
    mesh.barrier("sampled")
    if jax.process_index() == 0 and config.sample.sheet:
        shown = chosen[: config.sample.sheet]
        write_png(folder / records.SHEET, sheet_of(config, source, folder, names, shown))
        logging.info("results in %s, the first of them in %s", folder, folder / records.SHEET)
    return folder


def _finished(config: ConfigDict, folder: Path, name: str) -> bool:
    """Whether an image's result, and its trajectory where asked for, is written."""
    if not (folder / name).exists():
        return False
    return not config.sample.trajectory or not film.missing(folder / film.FOLDER, name)


def _translate(config: ConfigDict, sampler, source, folder: Path, names, todo: list[int]) -> None:
    """Translate the images numbered `todo`, in batches."""
    devices = sampler.devices
    keep = film.FRAMES if config.sample.trajectory else 0
    # No batch is padded further than the work that there is.
    most = max(mesh.round_up(len(todo), devices), devices.size)
    batches = eval_batches(
        source,
        inputs.reading(config),
        batch_size=min(mesh.round_up(config.sample.batch_size, devices), most),
        indices=todo,
    )
    by_id = dict(zip(source.ids, names, strict=True))
    with tqdm(total=len(todo), unit="image", desc=config.method, disable=None) as bar:
        for batch in batches:
            y, states = sampler.states(batch["image"], batch["id"], keep)
            images = to_uint8(y)
            for row in np.flatnonzero(batch["mask"]):
                name = by_id[batch["name"][row]]
                if keep:
                    seen = states[:, :, row].reshape(-1, *images[row].shape)
                    film.write(folder / film.FOLDER, name, batch["image"][row], seen)
                # Last: it says that the image is done.
                write_png(folder / name, images[row])
                bar.update()


def sheet_of(
    config: ConfigDict, source, folder: Path, names: Sequence[str], shown: Sequence[int]
) -> np.ndarray:
    """Source | result | true target (where there is one) of the images numbered `shown`, uint8."""
    pairs = inputs.open_truth(config)
    rows = []
    for j in shown:
        row = [
            inputs.reading(config)(source[j]["image"]),
            decode(folder / names[j], names[j]),
        ]
        if pairs is not None:
            row.append(inputs.reading(config)(pairs[j]["image"]))
        rows.append(row)
    titles = ["source", config.method, *(["true target"] if pairs is not None else [])]
    return contact_sheet(rows, titles, blocks=4 if len(rows) > 8 else 1)
