"""`--mode=eval`: the translated images of a method against their sources and, where the data has
them, their true pairs (means with 95% bootstrap intervals over images), and their features against
those of the target's real images (realism.py).

Every picture is read from the file that sampling wrote; sources are resized as for sampling.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import features, metrics, realism, report
from cdsde import sample as sample_lib
from cdsde.data import contact_sheet, decode, resize, write_png

TO_SOURCE, TO_PAIR = "source", "true target"
UNCHANGED = "source unchanged"  # row of the realism table: what doing nothing scores


def evaluate(config: ConfigDict, workdir) -> dict[str, dict]:
    """Evaluate `config.method`, or each of `config.eval.methods`.

    Writes WORKDIR/eval/METHOD/{metrics.json, metrics.csv, per_image.csv} and, for several methods,
    WORKDIR/eval/sheet.png with their results side by side. Prints the table.

    Returns:
      `{method: {"L2 to source": {"value", "low", "high", "images"}, ...}}`; the value of a metric
      of single images is their mean.

    Raises:
      ValueError: results are missing (says how many and what to run), are those of another method
        or split, or sizes do not fit; or weights of a feature network that are none.
    """
    methods = config_lib.eval_methods(config)
    if len(methods) > 1 and config.sample.output is not None:
        raise ValueError(
            f"config.eval.methods names {len(methods)} methods, config.sample.output one folder; "
            "leave the latter out to read WORKDIR/samples/METHOD of each"
        )
    if jax.process_index() > 0:
        return {}
    config = config.copy_and_resolve_references()
    config.sample.split = config.eval.split
    source = sample_lib.open_input(config)
    pairs = sample_lib.open_truth(config)
    pairwise = pairwise_metrics(config)
    per_image, results = {}, {}
    for method in methods:
        config.method = method
        folder = sample_lib.output_folder(config, workdir)
        _check_record(config, folder)
        per_image[method] = measure(config, source, pairs, folder, pairwise)
        results[method] = summarise(per_image[method], config.eval.bootstrap, config.eval.seed)
    distances, how = measure_realism(config, workdir, methods, source, pairs)
    floors = {name: row for name, row in distances.items() if name not in methods}
    for method in methods:
        config.method = method
        results[method] |= distances.get(method, {})
        _write(config, workdir, per_image[method], results[method], {**how, "floors": floors})
    print(render(results, floors), flush=True)
    if len(methods) > 1 and config.sample.sheet:
        path = Path(workdir) / "eval" / "sheet.png"
        write_png(path, comparison(config, workdir, methods, source, pairs))
        logging.info("results side by side in %s", path)
    return results


def pairwise_metrics(config: ConfigDict) -> dict:
    """`{name: (made, truth) -> [B]}` on uint8 `[B, H, W, 3]`; LPIPS where it has weights."""

    def of_floats(metric):
        return lambda a, b: metric(a / 255, b / 255)

    def of_network(extractor):
        return lambda a, b: np.asarray(extractor(a, b)["distance"], np.float64)

    found = {name: of_floats(metric) for name, metric in metrics.METRICS.items()}
    for name, title in (("lpips_alex", "LPIPS-Alex"), ("lpips_vgg", "LPIPS-VGG")):
        if config.eval[name] is not None:
            found[title] = of_network(features.load(name, config.eval[name]))
    return found


def measure_realism(config: ConfigDict, workdir, methods, source, pairs):
    """Distances of every method's results, and of the floors, to the target's real images.

    Returns:
      `({row: {metric: {"value", ...}}}, how)`: rows are the methods, "source unchanged" and, where
      there are pairs, "true target"; `how` says with what they were made. Both are empty where
      `config.eval.reference` is "" or there are fewer than 4 images.
    """
    wanted = list(range(len(source)))[: config.sample.limit]
    if not config.eval.reference:
        return {}, {}
    if len(wanted) < 4:
        logging.info("%d images are too few for metrics of realism: left out", len(wanted))
        return {}, {}
    split, target, d = config.eval.reference, config.data.target, config.data
    try:
        real = sample_lib.open_split(config, target, split)
    except ValueError as error:
        raise ValueError(
            f"{error} Realism is measured against them; --config.eval.reference= leaves it out."
        ) from error

    def resized(images, at):
        def batches():
            for j in at:
                yield resize(images[j]["image"], d.image_size, filter=d.filter)[None]

        return batches, len(at)

    def written(method):
        names = sample_lib.output_names(source.ids)
        folder = sample_lib.output_folder(_of_method(config, method), workdir)
        return lambda: (_read(folder / names[j], d.image_size)[None] for j in wanted), len(wanted)

    sets = {method: written(method) for method in methods}
    sets[UNCHANGED] = resized(source, wanted)
    if pairs is not None:
        sets[TO_PAIR] = resized(pairs, wanted)
    rows: dict[str, dict] = {name: {} for name in sets}
    how: dict = {"reference": {"domain": target, "split": split, "images": len(real)}}
    for name in realism.MEASURES:
        path = config.eval.get(name)
        if path is None and name != "efficientnet_lite0":
            continue
        extractor = features.load(name, path)
        cache = Path(config.eval.cache or Path(workdir) / "eval" / "reference")
        truth = realism.statistics(extractor, *resized(real, range(len(real))), cache=cache)
        how["reference"]["pixels_sha256"] = truth.images
        how.setdefault("extractors", {})[name] = extractor.hash
        for row, images in sets.items():
            made = realism.statistics(extractor, *images)
            rows[row] |= realism.compare(name, made, truth, config.eval.seed)
    return rows, how


def _of_method(config: ConfigDict, method: str) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.method = method
    return changed


def measure(config: ConfigDict, source, pairs, folder, pairwise) -> dict[str, np.ndarray]:
    """Every metric of every image: `{"name": [N], "L2 to source": [N], ...}`, in source order."""
    folder, size = Path(folder), config.data.image_size
    names = sample_lib.output_names(source.ids)
    wanted = list(range(len(source)))[: config.sample.limit]
    missing = [names[j] for j in wanted if not (folder / names[j]).exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} results are missing in {folder} (first: "
            f"{missing[0]}); run --mode=sample with the same config first"
        )
    columns: dict[str, list] = {"name": [source.ids[j] for j in wanted]}
    for at in range(0, len(wanted), 64):
        chosen = wanted[at : at + 64]
        made = np.stack([_read(folder / names[j], size) for j in chosen])
        against = {TO_SOURCE: source} | ({TO_PAIR: pairs} if pairs is not None else {})
        for what, images in against.items():
            truth = np.stack(
                [resize(images[j]["image"], size, filter=config.data.filter) for j in chosen]
            )
            for name, metric in pairwise.items():
                columns.setdefault(f"{name} to {what}", []).extend(metric(made, truth))
    return {k: np.asarray(v) for k, v in columns.items()}


def summarise(per_image: dict[str, np.ndarray], resamples: int, seed: int) -> dict[str, dict]:
    """Mean and 95% interval of every metric, with the number of images."""
    summary = {}
    for name, values in per_image.items():
        if name != "name":
            low, high = metrics.bootstrap_interval(values, resamples, seed)
            mean = float(np.mean(values))
            summary[name] = {"value": mean, "low": low, "high": high, "images": len(values)}
    return summary


def render(results: dict[str, dict], floors: dict[str, dict] | None = None) -> str:
    """The table for the screen: one row a method, value [low, high]; blocks of a readable width."""
    first = next(iter(results.values()))

    def block(title, names, rows):
        body = [[row, *(_cell(r[name]) for name in names)] for row, r in rows.items()]
        return report.table(body, [title, *(name.split(" to ")[0] for name in names)])

    blocks, rest = [], list(first)
    for what in (TO_SOURCE, TO_PAIR):
        names = [name for name in first if name.endswith(f" to {what}")]
        rest = [name for name in rest if name not in names]
        if names:
            blocks.append(block(f"to the {what}", names, results))
    if rest:
        blocks.append(block("realism", rest, {**results, **(floors or {})}))
    count = next(iter(first.values()))["images"]
    return "\n\n".join(blocks) + f"\n\n{count} images; mean or distance [95% interval over images]"


def _cell(value: dict) -> str:
    interval = "" if value["low"] is None else f" [{value['low']:.4g}, {value['high']:.4g}]"
    return f"{value['value']:.4g}{interval}"


def comparison(config: ConfigDict, workdir, methods, source, pairs) -> np.ndarray:
    """Source | each method | true target of the first images, uint8."""
    size = config.data.image_size
    names = sample_lib.output_names(source.ids)
    rows = []
    folders = [sample_lib.output_folder(_of_method(config, m), workdir) for m in methods]
    for j in range(len(source))[: config.sample.limit][: config.sample.sheet]:
        row = [resize(source[j]["image"], size, filter=config.data.filter)]
        row += [_read(folder / names[j], size) for folder in folders]
        if pairs is not None:
            row.append(resize(pairs[j]["image"], size, filter=config.data.filter))
        rows.append(row)
    titles = ["source", *methods] + ([TO_PAIR] if pairs is not None else [])
    return contact_sheet(rows, titles, blocks=2 if len(rows) > 4 else 1)


def _check_record(config: ConfigDict, folder: Path) -> None:
    """Check that results (which may come without a record) are of this method and split."""
    path = folder / sample_lib.RECORD
    if not path.exists():
        return
    record = json.loads(path.read_text())
    have, want = {"method": record["method"]}, {"method": config.method}
    if config.sample.input is None:
        have["split"], want["split"] = record["sample"]["split"], config.sample.split
    if have != want:
        raise ValueError(
            f"{folder} holds results of {', '.join(f'{k} {v}' for k, v in have.items())}, and "
            f"{', '.join(f'{k} {v}' for k, v in want.items())} is to be evaluated; change "
            "config.method or config.eval.split, or run --mode=sample into another folder"
        )


def _read(path: Path, size: int) -> np.ndarray:
    image = decode(path, path.name)
    if image.shape[:2] != (size, size):
        raise ValueError(
            f"{path} is {image.shape[1]}x{image.shape[0]}, config.data.image_size is {size}: it "
            "was not made with this config; run --mode=sample again into another folder"
        )
    return image


def _write(config: ConfigDict, workdir, per_image, summary, how) -> None:
    out = Path(workdir) / "eval" / config.method
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metrics.csv").open("w", newline="") as f:
        w = csv.writer(f)
        columns = ("value", "low", "high", "images")
        w.writerow(["metric", *columns])
        w.writerows(
            [k, *("" if v[c] is None else repr(v[c]) for c in columns)] for k, v in summary.items()
        )
    with (out / "per_image.csv").open("w", newline="") as f:
        w = csv.writer(f)
        w.writerow(per_image)
        w.writerows(zip(*per_image.values(), strict=True))
    record = sample_lib.output_folder(config, workdir) / sample_lib.RECORD
    images = "\n".join(map(str, per_image["name"]))
    report.write_json(
        out / "metrics.json",
        {
            "method": config.method,
            "metrics": summary,
            "interval": "95% over images: of means by bootstrap, of distances by jackknife",
            "realism": how,
            "image_list_sha256": hashlib.sha256(images.encode()).hexdigest(),
            "sampling": json.loads(record.read_text()) if record.exists() else None,
            "config": json.loads(config.to_json_best_effort()),
            **report.provenance(),
        },
    )
    logging.info("%s: metrics in %s", config.method, out)
