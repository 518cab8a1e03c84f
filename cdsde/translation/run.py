"""`--mode=sample`: images → solver → one PNG each, for folders of any size.

Work is cut into batches over this process's devices; each process takes its share of the list. A
run that was cut off goes on where it stopped, since finished files are left alone; a folder that
holds results of other settings is refused rather than mixed.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from cdsde import config as config_lib
from cdsde.data import (
    contact_sheet,
    decode,
    eval_batches,
    inputs,
    resize,
    to_uint8,
    write_png,
)
from cdsde.runtime import mesh, records
from cdsde.translation import film
from cdsde.translation.compiled import load_sampler


def sample(config: ConfigDict, workdir, loaded=None) -> Path:
    """Translate every input image; returns the folder of the results.

    Args:
      config: the task.
      workdir: where its networks are, and by default its results.
      loaded: `load_sampler`'s result where there is one already, of this config.

    Raises:
      ValueError: no weights, a broken image (named), or results of other settings in the way.
    """
    source = inputs.open_input(config)
    sampler, origins = loaded or load_sampler(config, workdir)
    folder = records.output_folder(config, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    names = records.output_names(source.ids)
    records.claim(folder, records.settings_record(config, origins, source), names)

    wanted = range(len(source))[: config.sample.limit]
    mine = list(wanted)[jax.process_index() :: jax.process_count()]
    shown = folder / film.FOLDER if config.sample.trajectory else None
    if shown and config.method in config_lib.GANS:
        raise ValueError(
            f"config.sample.trajectory is True, and {config.method} has no trajectory: it makes a "
            "picture in one pass; leave it out"
        )

    def there(name):
        return (folder / name).exists() and not (shown and film.missing(shown, name))

    todo = [j for j in mine if not there(names[j])]
    logging.info(
        "%s: %d of %d images to translate, %d network evaluations each, on %d %s device(s)",
        config.method,
        len(todo),
        len(mine),
        sampler.evaluations,
        sampler.devices.size,
        jax.default_backend(),
    )
    size = min(mesh.round_up(config.sample.batch_size, sampler.devices), _cap(todo, sampler))
    batches = eval_batches(
        source,
        image_size=config.data.image_size,
        batch_size=size,
        filter=config.data.filter,
        fit=config.data.fit,
        indices=todo,
    )
    by_id = dict(zip(source.ids, names, strict=True))
    with tqdm(total=len(todo), unit="image", desc=config.method, disable=None) as bar:
        for batch in batches:
            images, states = sampler.states(
                batch["image"], batch["id"], film.FRAMES if shown else False
            )
            images = to_uint8(images)
            for row, (name, real) in enumerate(zip(batch["name"], batch["mask"], strict=True)):
                if real:
                    if shown:
                        seen = states[:, :, row].reshape(-1, *images[row].shape)
                        film.write(shown, by_id[name], batch["image"][row], seen)
                    # Last: it says that the image is done.
                    write_png(folder / by_id[name], images[row])
                    bar.update()
    mesh.barrier("sampled")
    if jax.process_index() == 0 and config.sample.sheet:
        write_png(folder / records.SHEET, sheet_of(config, source, folder, names, wanted))
        logging.info("results in %s, the first of them in %s", folder, folder / records.SHEET)
    return folder


def _cap(todo, sampler) -> int:
    """No batch is padded further than the work that there is."""
    return max(mesh.round_up(len(todo), sampler.devices), sampler.devices.size)


def sheet_of(config: ConfigDict, source, folder: Path, names, wanted) -> np.ndarray:
    """Source | result | true target (where there is one) of the first images, uint8."""
    pairs = inputs.open_truth(config)
    size = config.data.image_size
    rows = []
    for j in list(wanted)[: config.sample.sheet]:
        row = [
            resize(source[j]["image"], size, filter=config.data.filter, fit=config.data.fit),
            decode(folder / names[j], names[j]),
        ]
        rows.append(
            row
            + (
                [resize(pairs[j]["image"], size, filter=config.data.filter, fit=config.data.fit)]
                if pairs
                else []
            )
        )
    titles = ["source", config.method, *(["true target"] if pairs else [])]
    return contact_sheet(rows, titles, blocks=4 if len(rows) > 8 else 1)
