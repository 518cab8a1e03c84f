"""`--mode=eval`: the translated images of a method against their sources and, where the data has
them, their true pairs. Means with 95% bootstrap intervals over images.

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
from cdsde import metrics, report
from cdsde import sample as sample_lib
from cdsde.data import contact_sheet, decode, resize, write_png

TO_SOURCE, TO_PAIR = "source", "true target"


def evaluate(config: ConfigDict, workdir) -> dict[str, dict]:
    """Evaluate `config.method`, or each of `config.eval.methods`.

    Writes WORKDIR/eval/METHOD/{metrics.json, metrics.csv, per_image.csv} and, for several methods,
    WORKDIR/eval/sheet.png with their results side by side. Prints the table.

    Returns:
      `{method: {"L2 to source": {"mean", "low", "high"}, ...}}`.

    Raises:
      ValueError: results are missing (says how many and what to run), are those of another method
        or split, or sizes do not fit.
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
    results = {}
    for method in methods:
        config.method = method
        folder = sample_lib.output_folder(config, workdir)
        _check_record(config, folder)
        per_image = measure(config, source, pairs, folder)
        results[method] = summarise(per_image, config.eval.bootstrap, config.eval.seed)
        _write(config, workdir, folder, per_image, results[method])
    print(render(results), flush=True)
    if len(methods) > 1 and config.sample.sheet:
        path = Path(workdir) / "eval" / "sheet.png"
        write_png(path, comparison(config, workdir, methods, source, pairs))
        logging.info("results side by side in %s", path)
    return results


def measure(config: ConfigDict, source, pairs, folder) -> dict[str, np.ndarray]:
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
            for name, metric in metrics.METRICS.items():
                columns.setdefault(f"{name} to {what}", []).extend(metric(made / 255, truth / 255))
    return {k: np.asarray(v) for k, v in columns.items()}


def summarise(per_image: dict[str, np.ndarray], resamples: int, seed: int) -> dict[str, dict]:
    """Mean and 95% interval of every metric, with the number of images."""
    summary = {}
    for name, values in per_image.items():
        if name != "name":
            low, high = metrics.bootstrap_interval(values, resamples, seed)
            mean = float(np.mean(values))
            summary[name] = {"mean": mean, "low": low, "high": high, "images": len(values)}
    return summary


def render(results: dict[str, dict]) -> str:
    """The table for the screen: one row a method, mean [low, high]."""
    header = list(next(iter(results.values())))
    rows = [
        [m] + [f"{r[h]['mean']:.4g} [{r[h]['low']:.4g}, {r[h]['high']:.4g}]" for h in header]
        for m, r in results.items()
    ]
    count = next(iter(next(iter(results.values())).values()))["images"]
    # Against source and against pair are two blocks: one line would be too wide to read.
    blocks = []
    for what in (TO_SOURCE, TO_PAIR):
        at = [k for k, h in enumerate(header) if h.endswith(f" to {what}")]
        if at:
            titles = [f"to the {what}"] + [header[k].split(" to ")[0] for k in at]
            body = [[row[0]] + [row[k + 1] for k in at] for row in rows]
            blocks.append(report.table(body, titles))
    return "\n\n".join(blocks) + f"\n\n{count} images; mean [95% bootstrap interval over images]"


def comparison(config: ConfigDict, workdir, methods, source, pairs) -> np.ndarray:
    """Source | each method | true target of the first images, uint8."""
    size = config.data.image_size
    names = sample_lib.output_names(source.ids)
    rows = []
    for j in range(len(source))[: config.sample.limit][: config.sample.sheet]:
        row = [resize(source[j]["image"], size, filter=config.data.filter)]
        for method in methods:
            config.method = method
            row.append(_read(sample_lib.output_folder(config, workdir) / names[j], size))
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


def _write(config: ConfigDict, workdir, folder, per_image, summary) -> None:
    out = Path(workdir) / "eval" / config.method
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metrics.csv").open("w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["metric", "mean", "low", "high", "images"])
        w.writerows(
            [k, *(repr(v[c]) for c in ("mean", "low", "high", "images"))]
            for k, v in summary.items()
        )
    with (out / "per_image.csv").open("w", newline="") as f:
        w = csv.writer(f)
        w.writerow(per_image)
        w.writerows(zip(*per_image.values(), strict=True))
    record = Path(folder) / sample_lib.RECORD
    images = "\n".join(map(str, per_image["name"]))
    report.write_json(
        out / "metrics.json",
        {
            "method": config.method,
            "metrics": summary,
            "interval": f"95% percentile bootstrap over images, {config.eval.bootstrap} resamples",
            "image_list_sha256": hashlib.sha256(images.encode()).hexdigest(),
            "sampling": json.loads(record.read_text()) if record.exists() else None,
            "config": json.loads(config.to_json_best_effort()),
            **report.provenance(),
        },
    )
    logging.info("%s: metrics in %s", config.method, out)
