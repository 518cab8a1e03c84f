"""`--mode=eval`: metrics of translated images.

Faithfulness compares each result with its source and, if the data set has them, its true pair (mean
and 95% bootstrap interval over images). Realism compares the results' features with those of the
target's real images (realism.py). Results are read from the files that sampling wrote; sources are
resized as for sampling. Each process measures its share of the images; all return the same numbers,
and process 0 writes them.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import metrics
from cdsde.config import checks
from cdsde.data import Reading, contact_sheet, content, decode, inputs, told_by, write_png
from cdsde.evaluate import extractors, realism, recorded, shapes
from cdsde.evaluate.glance import glance
from cdsde.runtime import files, mesh, progress, records

TO_SOURCE, TO_PAIR = "source", "true target"
UNCHANGED = "source unchanged"  # row of the realism table: the score of the sources


def evaluate(config: ConfigDict, workdir) -> dict[str, dict]:
    """Evaluate `config.method`, or each of `config.eval.methods`.

    Writes WORKDIR/eval/METHOD/{metrics.json, metrics.csv, per_image.csv} and, for several methods,
    WORKDIR/eval/sheet.png with their results side by side. Prints the table.

    Returns:
      `{method: {"L2 to source": {"value", "low", "high", "images"}, ...}}`; the value of a metric
      of single images is their mean.

    Raises:
      ValueError: results are missing, of another method or split, of other settings, or of another
        size, or a file does not hold a feature network's weights.
    """
    methods = config_lib.eval_methods(config)
    checks.check_measures(config)
    if len(methods) > 1 and config.sample.output is not None:
        raise ValueError(
            f"config.eval.methods names {len(methods)} methods, config.sample.output one folder; "
            "set the latter to None to read WORKDIR/samples/METHOD of each"
        )
    source, pairs = inputs.open_input(config), inputs.open_truth(config)
    networks = lpips(config)
    pairwise = pairwise_metrics(networks)
    configs = {method: of_method(config, method) for method in methods}
    folders = {method: records.output_folder(c, workdir) for method, c in configs.items()}
    legibility = open_shapes(config, pairs)
    per_image, results = {}, {}
    for method, folder in folders.items():
        recorded.check(config, method, workdir, folder, source)
        per_image[method] = measure(config, source, pairs, folder, pairwise, legibility)
        results[method] = summarise(per_image[method], config.eval.bootstrap)
    realism_rows, record = measure_realism(config, workdir, folders, source, pairs)
    if legibility:
        for name, images in ((UNCHANGED, source), (TO_PAIR, pairs)):
            chosen = range(len(source))[: config.sample.limit]
            columns = legibility(resized(config, images), chosen)
            realism_rows.setdefault(name, {}).update(summarise(columns, config.eval.bootstrap))
    if pairs is not None:
        columns = unchanged(config, source, pairs, pairwise)
        realism_rows.setdefault(UNCHANGED, {}).update(summarise(columns, config.eval.bootstrap))
    floors = {name: row for name, row in realism_rows.items() if name not in methods}
    record = {**record, "floors": floors, "lpips": {k: n.hash for k, n in networks.items()}}
    for method, folder in folders.items():
        results[method] |= realism_rows.get(method, {})
        if jax.process_index() == 0:
            write(configs[method], workdir, per_image[method], results[method], record, folder)
    if jax.process_index() == 0:
        print(render(results, floors), glance(results, floors), sep="\n\n", flush=True)
        if len(methods) > 1 and config.sample.sheet:
            _write_sheet(config, workdir, folders, source, pairs)
    return results


def _write_sheet(config: ConfigDict, workdir, folders: dict[str, Path], source, pairs) -> None:
    """WORKDIR/eval/sheet.png: the methods' results side by side."""
    path = Path(workdir) / "eval" / records.SHEET
    shown = range(len(source))[: config.sample.limit][: config.sample.sheet]
    columns = {"source": resized(config, source)}
    columns |= {
        config_lib.title(m): written(config, source, folder) for m, folder in folders.items()
    }
    columns |= {TO_PAIR: resized(config, pairs)} if pairs is not None else {}
    write_png(path, comparison(shown, columns))
    logging.info("results side by side in %s", path)


def pairwise_metrics(networks: dict[str, extractors.Extractor]) -> dict:
    """`{name: (a, b) -> [B]}` on uint8 `[B, H, W, 3]`: `metrics.METRICS` and `lpips` networks."""

    def of_floats(metric):
        return lambda a, b: metric(a / 255, b / 255)

    def of_network(extractor):
        return lambda a, b: np.asarray(extractor(a, b)["distance"], np.float64)

    plain = {name: of_floats(metric) for name, metric in metrics.METRICS.items()}
    return plain | {title: of_network(network) for title, network in networks.items()}


def lpips(config: ConfigDict) -> dict[str, extractors.Extractor]:
    """`{title: network}` of LPIPS, for the networks whose weights the config names."""
    keys = {"lpips_alex": "LPIPS-Alex", "lpips_vgg": "LPIPS-VGG"}
    keys["lpips_squeeze"] = "LPIPS-Squeeze"
    paths = {name: config.eval[name] for name in keys if config.eval[name] is not None}
    return {keys[name]: extractors.load(name, path) for name, path in paths.items()}


def open_shapes(config: ConfigDict, pairs) -> shapes.Shapes | None:
    """The true results as a ruler of `eval.shapes`; None if it is off or there are none."""
    if not config.eval.shapes or pairs is None:
        return None
    return shapes.Shapes(extractors.load("efficientnet_lite0"), resized(config, pairs), len(pairs))


class Reference(NamedTuple):
    """Feature statistics of the target's real images.

    Attributes:
      rulers: `(extractor, statistics of the real images)` pairs.
      how: domain, split, hashes of images and extractors, for records.
    """

    rulers: tuple[tuple[extractors.Extractor, realism.Statistics], ...]
    how: dict


def open_reference(config: ConfigDict, workdir) -> Reference:
    """Statistics of the target's split `config.eval.reference` by every extractor with weights.

    Raises:
      ValueError: the split does not exist, or a file does not hold a feature network's weights.
    """
    split, target = config.eval.reference, config.data.target
    try:
        real = inputs.open_split(config, target, split)
    except ValueError as error:
        raise ValueError(
            f"{error} Realism is measured against them; --config.eval.reference=None leaves it out."
        ) from error
    record: dict = {"reference": {"domain": target, "split": split, "images": len(real)}}
    cache = Path(config.eval.cache or Path(workdir) / "eval" / "reference")
    rulers = []
    for name in realism.MEASURES:
        path = config.eval.get(name)
        if path is None and name != "efficientnet_lite0":
            continue
        extractor = extractors.load(name, path)
        truth = realism.statistics(extractor, resized(config, real), len(real), cache=cache)
        record["reference"]["pixels_sha256"] = truth.images
        record.setdefault("extractors", {})[name] = extractor.hash
        rulers.append((extractor, truth))
    return Reference(tuple(rulers), record)


def distances(reference: Reference, read: Callable, count: int) -> dict[str, dict]:
    """Every distance of `count` images to the reference; `read(j)` is uint8 `[H, W, 3]`."""
    row: dict[str, dict] = {}
    for extractor, truth in reference.rulers:
        statistics = realism.statistics(extractor, read, count)
        row |= realism.compare(extractor.name, statistics, truth)
    return row


def resized(config: ConfigDict, images) -> Callable[[int], np.ndarray]:
    """`position -> uint8 [H, W, 3]` of the images of a source, resized as for sampling."""
    return lambda j: inputs.reading(config)(images[j]["image"])


def written(config: ConfigDict, source, folder) -> Callable[[int], np.ndarray]:
    """`position -> uint8 [S, S, 3]` of the results in `folder` for the images of a source.

    Results that show the whole picture are resized as the sources are.
    """
    names, read = records.output_names(source.ids), inputs.reading(config)
    keeps_size = config.sample.keep_size
    return lambda j: read(_read(Path(folder) / names[j], None if keeps_size else read))


def measure_realism(config: ConfigDict, workdir, folders: dict[str, Path], source, pairs):
    """Distances of every method's results, and of the floors, to the target's real images.

    Returns:
      `({row: {metric: {"value", ...}}}, record)`: rows are the methods, "source unchanged" and,
      with pairs, "true target"; the record is `Reference.how`. Both are empty if
      `config.eval.reference` is "" or there are fewer than 4 images.
    """
    count = len(range(len(source))[: config.sample.limit])
    if not config.eval.reference:
        return {}, {}
    if count < 4:
        logging.info("%d images are too few for metrics of realism: left out", count)
        return {}, {}
    reference = open_reference(config, workdir)
    sets = {method: written(config, source, folder) for method, folder in folders.items()}
    sets[UNCHANGED] = resized(config, source)
    if pairs is not None:
        sets[TO_PAIR] = resized(config, pairs)
    rows = {name: distances(reference, read, count) for name, read in sets.items()}
    return rows, reference.how


def of_method(config: ConfigDict, method: str) -> ConfigDict:
    """The config with another method."""
    changed = config.copy_and_resolve_references()
    changed.method = method
    return changed


def measure(
    config: ConfigDict, source, pairs, folder, pairwise, legibility=None, chosen=None
) -> dict[str, np.ndarray]:
    """Every metric of every image: `{"name": [N], "L2 to source": [N], ...}`.

    Args:
      config: the task.
      source: the source images.
      pairs: their true pairs, or None.
      folder: the folder of the results.
      pairwise: `pairwise_metrics`.
      legibility: `open_shapes`.
      chosen: positions of the images; default: the first `config.sample.limit`.

    Raises:
      ValueError: a result is missing, of another size, or of another image of that name.
    """
    folder = Path(folder)
    names = records.output_names(source.ids)
    chosen = list(range(len(source)))[: config.sample.limit] if chosen is None else chosen
    missing = [names[j] for j in chosen if not (folder / names[j]).exists()]
    mode = "edit" if config.method in config_lib.EDITORS else "sample"
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(chosen)} results are missing in {folder} (first: "
            f"{missing[0]}); run --mode={mode} with the same config first"
        )
    mine = list(mesh.share(len(chosen)))
    told = {j: told_by(folder / names[j]) for j in (chosen[n] for n in mine)}
    stale = [j for j, t in told.items() if t and t.get("source") not in (None, content(source, j))]
    if not mesh.in_every_process(not stale):
        first = f" (first: {names[stale[0]]})" if stale else ""
        raise ValueError(
            f"{len(stale)} of {len(told)} results in {folder} were made from other images than "
            f"those that now have their names{first}; run --mode={mode} with the same config, "
            "which makes these again"
        )
    against = {TO_SOURCE: source} | ({TO_PAIR: pairs} if pairs is not None else {})
    result, truth = (
        written(config, source, folder),
        {title: resized(config, images) for title, images in against.items()},
    )
    columns = _compared(result, truth, pairwise, chosen)
    if legibility:
        columns |= legibility(result, chosen)
    return {"name": np.asarray([source.ids[j] for j in chosen]), **columns}


def unchanged(config: ConfigDict, source, pairs, pairwise) -> dict[str, np.ndarray]:
    """Every pairwise metric of the sources to their true targets: `{"L2 to true target": [N]}`."""
    chosen = list(range(len(source)))[: config.sample.limit]
    truth = {TO_PAIR: resized(config, pairs)}
    return _compared(resized(config, source), truth, pairwise, chosen)


def _compared(read: Callable, truth: dict, pairwise: dict, chosen: list) -> dict[str, np.ndarray]:
    """Metrics of the chosen images to each truth; a process measures its share of them."""
    columns: dict[str, list] = {}
    mine = list(mesh.share(len(chosen)))
    for start in range(0, len(mine), 64):
        part = [chosen[n] for n in mine[start : start + 64]]
        results = np.stack([read(j) for j in part])
        for title, read_truth in truth.items():
            images = np.stack([read_truth(j) for j in part])
            for name, metric in pairwise.items():
                values = np.asarray(metric(results, images), np.float64)
                columns.setdefault(f"{name} to {title}", []).append(values)
    return {k: mesh.gather_rows(np.concatenate(v), mine) for k, v in columns.items()}


def summarise(per_image: dict[str, np.ndarray], resamples: int) -> dict[str, dict]:
    """Mean, 95% interval and number of images of every metric, without images that have none."""
    summary = {}
    for name, values in per_image.items():
        if name != "name" and len(values := values[~np.isnan(values)]):
            low, high = metrics.bootstrap_interval(values, resamples)
            mean = float(np.mean(values))
            summary[name] = {"value": mean, "low": low, "high": high, "images": len(values)}
    return summary


def render(
    results: dict[str, dict], floors: dict[str, dict] | None = None, title: str = "realism"
) -> str:
    """The tables for the terminal: one row per method, cells `value [low, high]`.

    Metrics to the source, to the true target, and all others (headed `title`) are separate tables.
    """
    first = next(iter(results.values()))

    def block(title, names):
        complete = {n: r for n, r in (floors or {}).items() if set(names) <= set(r)}
        rows = {**results, **complete}
        body = [[row, *(_cell(r[name]) for name in names)] for row, r in rows.items()]
        return progress.table(body, [title, *(name.split(" to ")[0] for name in names)])

    blocks, rest = [], list(first)
    for other in (TO_SOURCE, TO_PAIR):
        names = [name for name in first if name.endswith(f" to {other}")]
        rest = [name for name in rest if name not in names]
        if names:
            blocks.append(block(f"to the {other}", names))
    if rest:
        blocks.append(block(title, rest))
    count = next(iter(first.values()))["images"]
    return "\n\n".join(blocks) + f"\n\n{count} images; mean or distance [95% interval over images]"


def _cell(value: dict) -> str:
    interval = "" if value["low"] is None else f" [{value['low']:.4g}, {value['high']:.4g}]"
    return f"{value['value']:.4g}{interval}"


def comparison(numbers: Iterable[int], columns: dict[str, Callable]) -> np.ndarray:
    """A uint8 sheet with a row per image; `columns` is `{title: position -> uint8 [H, W, 3]}`."""
    rows = [[read(j) for read in columns.values()] for j in numbers]
    return contact_sheet(rows, list(columns), blocks=2 if len(rows) > 4 else 1)


def _read(path: Path, read: Reading | None) -> np.ndarray:
    """A result; with `read`, it must have a size that reading and cutting off borders gives."""
    image = decode(path, path.name)
    if read is None:
        return image
    size = read.size
    fits = max(image.shape[:2]) == size if read.fit == "pad" else image.shape[:2] == (size, size)
    if not fits:
        raise ValueError(
            f"{path} is {image.shape[1]}x{image.shape[0]}, config.data.image_size is {size}: it "
            "was not made with this config; run --mode=sample again into another folder"
        )
    return image


@contextlib.contextmanager
def _csv(path: Path):
    text = io.StringIO()
    yield csv.writer(text)
    files.write_bytes(path, text.getvalue().encode())


def write(config: ConfigDict, workdir, per_image, summary, record, folder) -> None:
    """Write the evaluation of `config.method`: metrics.json, metrics.csv and per_image.csv.

    Args:
      config: the config with this method.
      workdir: the files go to WORKDIR/eval/METHOD.
      per_image: `measure`'s result.
      summary: `summarise`'s result, and the distances.
      record: reference images and networks of the metrics.
      folder: the folder of the method's results.
    """
    out = Path(workdir) / "eval" / config.method
    with _csv(out / "metrics.csv") as w:
        columns = ("value", "low", "high", "images")
        w.writerow(["metric", *columns])
        w.writerows(
            [k, *("" if v[c] is None else repr(v[c]) for c in columns)] for k, v in summary.items()
        )
    with _csv(out / "per_image.csv") as w:
        w.writerow(per_image)
        w.writerows(zip(*per_image.values(), strict=True))
    images = "\n".join(map(str, per_image["name"]))
    files.write_json(
        out / "metrics.json",
        {
            "method": config.method,
            "metrics": summary,
            "interval": "95% over images: of means by bootstrap, of distances by jackknife",
            "realism": record,
            "image_list_sha256": hashlib.sha256(images.encode()).hexdigest(),
            "sampling": records.read(Path(folder)),
            "config": json.loads(config.to_json_best_effort()),
            **records.provenance(),
        },
    )
    logging.info("%s: metrics in %s", config.method, out)
