"""`--mode=sample`: images → solver → one PNG each, for folders of any size.

Work is cut into batches over this process's devices; each process takes its share of the list. A
run that was cut off goes on where it stopped, since finished files are left alone; a folder that
holds results of other settings is refused rather than mixed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from cdsde import config as config_lib
from cdsde import mesh, report, trajectories
from cdsde.data import (
    FilesSource,
    JoinedSource,
    contact_sheet,
    decode,
    eval_batches,
    open_domain,
    open_pairs,
    resize,
    to_uint8,
    write_png,
)
from cdsde.sampler import load_sampler

RECORD = "settings.json"  # beside the images: what they were made with
SHEET = "sheet.png"  # beside them too: the first of them at a glance


def open_input(config: ConfigDict):
    """The images to translate: `sample.input`, or the split of every source domain."""
    if config.sample.input is not None:
        return FilesSource(config.sample.input)
    names = config_lib.sources(config)
    parts = {name: open_split(config, name, config.sample.split) for name in names}
    return JoinedSource(parts) if len(parts) > 1 else parts[names[0]]


def open_truth(config: ConfigDict):
    """The true pairs of `open_input`'s images, in the same order; None where there are none."""
    if config.sample.input is not None:
        return None
    d = config.data
    names = config_lib.sources(config)
    parts = {name: open_pairs(d.root, name, d.target, config.sample.split) for name in names}
    if None in parts.values():
        return None
    return JoinedSource(parts) if len(parts) > 1 else parts[names[0]]


def open_split(config: ConfigDict, domain: str, split: str):
    """The images of one domain and split of the config's data."""
    return open_domain(config.data.root, domain, split, data_dir=config.data.data_dir)


def output_folder(config: ConfigDict, workdir) -> Path:
    """`config.sample.output`, or WORKDIR/samples/METHOD."""
    default = Path(workdir) / "samples" / config.method
    return default if config.sample.output is None else Path(config.sample.output)


def output_names(ids: Sequence[str]) -> list[str]:
    """One PNG name per input: its stem, or its whole name where stems would meet each other.

    No input takes the name of the contact sheet.
    """
    whole = [str(name).replace("/", "_") for name in ids]
    stems = [Path(name).stem if Path(name).suffix else name for name in whole]
    count = Counter([*stems, Path(SHEET).stem])
    names = [f"{w if count[s] > 1 else s}.png" for s, w in zip(stems, whole, strict=True)]
    # Such as a.jpg, a.png and a.jpg.png.
    return names if len(set(names)) == len(names) else [f"{w}.png" for w in whole]


def settings_record(config: ConfigDict, origins: dict[str, str], source) -> dict:
    """What decides the pixels of a run's results."""
    plain = json.loads(config.to_json_best_effort())
    for key in ("input", "output", "batch_size", "limit", "sheet", "trajectory"):
        plain["sample"].pop(key)
    record = {k: plain[k] for k in ("method", "dtype", "sde", "sample", config.method)}
    record["data"] = {k: plain["data"][k] for k in ("image_size", "filter", "fit")}
    # Keys that came later are left out where they change nothing: older results are still those.
    later = ((config.method, "domain_band", 0), ("sample", "match_colours", 0))
    for part, key, neutral in (*later, ("data", "fit", "crop")):
        if record[part].get(key) == neutral:
            del record[part][key]
    if config.method in config_lib.GANS:
        record["sample"] = {"split": plain["sample"]["split"]}
        record.pop("sde")
    else:
        record["start"] = config_lib.start_index(config)
    record["weights"] = origins
    # Without the number of images: one may be added, or a broken one taken away, in between.
    record["input"] = re.sub(r" of \d+ images", "", repr(source))
    return record


def sample(config: ConfigDict, workdir, loaded=None) -> Path:
    """Translate every input image; returns the folder of the results.

    Args:
      config: the task.
      workdir: where its networks are, and by default its results.
      loaded: `load_sampler`'s result where there is one already, of this config.

    Raises:
      ValueError: no weights, a broken image (named), or results of other settings in the way.
    """
    source = open_input(config)
    sampler, origins = loaded or load_sampler(config, workdir)
    folder = output_folder(config, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    names = output_names(source.ids)
    claim(folder, settings_record(config, origins, source), names)

    wanted = range(len(source))[: config.sample.limit]
    mine = list(wanted)[jax.process_index() :: jax.process_count()]
    shown = folder / trajectories.FOLDER if config.sample.trajectory else None
    if shown and config.method in config_lib.GANS:
        raise ValueError(
            f"config.sample.trajectory is True, and {config.method} has no trajectory: it makes a "
            "picture in one pass; leave it out"
        )

    def there(name):
        return (folder / name).exists() and not (shown and trajectories.missing(shown, name))

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
                batch["image"], batch["id"], trajectories.FRAMES if shown else False
            )
            images = to_uint8(images)
            for row, (name, real) in enumerate(zip(batch["name"], batch["mask"], strict=True)):
                if real:
                    if shown:
                        seen = states[:, :, row].reshape(-1, *images[row].shape)
                        trajectories.write(shown, by_id[name], batch["image"][row], seen)
                    # Last: it says that the image is done.
                    write_png(folder / by_id[name], images[row])
                    bar.update()
    mesh.barrier("sampled")
    if jax.process_index() == 0 and config.sample.sheet:
        write_png(folder / SHEET, sheet_of(config, source, folder, names, wanted))
        logging.info("results in %s, the first of them in %s", folder, folder / SHEET)
    return folder


def _cap(todo, sampler) -> int:
    """No batch is padded further than the work that there is."""
    return max(mesh.round_up(len(todo), sampler.devices), sampler.devices.size)


def claim(folder: Path, record: dict, names: Sequence[str], key: str = "sample.output") -> None:
    """Write the record of a run's settings into its folder of results.

    Args:
      folder: of the results, which is there.
      record: what decides the pixels.
      names: of the results.
      key: of the config, that names the folder.

    Raises:
      ValueError: the folder holds results with another record, or files that are no results.
    """
    path = folder / RECORD
    if path.exists():
        old = json.loads(path.read_text())
        changed = sorted(
            k for k in record | old if old.get(k) != json.loads(json.dumps(record)).get(k)
        )
        if changed:
            raise ValueError(
                f"{folder} holds results made with other settings (different: "
                f"{', '.join(changed)}); delete it or choose another --config.{key}"
            )
    elif jax.process_index() == 0:
        # Without a record it is no result, and would pass for one (the input folder, for example).
        if foreign := next((name for name in names if (folder / name).exists()), None):
            raise ValueError(
                f"{folder} holds {foreign}, which is no result of --mode=sample (there is no "
                f"{RECORD} beside it); choose another --config.{key}"
            )
        report.write_json(path, record)


def sheet_of(config: ConfigDict, source, folder: Path, names, wanted) -> np.ndarray:
    """Source | result | true target (where there is one) of the first images, uint8."""
    pairs = open_truth(config)
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
