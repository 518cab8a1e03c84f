"""Tables of the results: means and standard deviations over seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cdsde.benchmark import floors, plan, published
from cdsde.config import title
from cdsde.evaluate import shapes

# Columns of the tables, in this order, if measured; ↓: lower is better.
COLUMNS = {
    "FID": "FID ↓",
    "KID x1000": "KID ×1000 ↓",
    "FD-EffNetLite0-block4": "FD-EffNetLite0-block4 ↓",
    "KID-EffNetLite0 x1000": "KID-EffNetLite0 ×1000 ↓",
    "L2 to source": "L2 to source ↓",
    "PSNR to source": "PSNR to source ↑",
    "SSIM to source": "SSIM to source ↑",
    "LPIPS-Alex to source": "LPIPS-Alex to source ↓",
    "L2 to true target": "L2 to true target ↓",
    "SSIM to true target": "SSIM to true target ↑",
    shapes.OVERLAP: "overlap of ink ↑",
    shapes.LEGIBLE: "legible ↑",
    shapes.BY_FEATURES: "legible by features ↑",
}


def tasks(results: dict) -> dict[str, dict]:
    """The tasks with results, the shipped ones first, and what is known of each."""
    known = results["tasks"]
    ordered = [name for name in plan.TASKS if name in known]
    return {name: known[name] for name in [*ordered, *(n for n in known if n not in ordered)]}


def points(results: dict, part: str, task: str, **fields) -> list[dict]:
    """The points of a part that have these fields, each with its run's result under "result"."""
    selected = [p for p in results["points"] if p["part"] == part and p["task"] == task]
    selected = [p for p in selected if all(p[k] == v for k, v in fields.items())]
    return [{**p, "result": results["runs"][p["run"]]} for p in selected]


def shaped(selected: Iterable[dict]) -> bool:
    """Whether shape changes between the domains, so that the true target counts."""
    return any(value(p, shapes.LEGIBLE) is not None for p in selected)


def value(point: dict, metric: str) -> float | None:
    """The value of a metric at a point; None if it was not measured."""
    entry = point["result"]["metrics"].get(metric)
    return None if entry is None else entry["value"]


def over_seeds(selected: Iterable[dict], metric: str) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation over points; None if the metric was not measured."""
    values = [v for v in (value(p, metric) for p in selected) if v is not None]
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def cell(mean_sd: tuple[float, float | None] | None) -> str:
    """The cell of a mean and standard deviation, such as `12.3 ± 0.4`."""
    if mean_sd is None:
        return ""
    mean, sd = mean_sd
    digits = 3 if abs(mean) < 1 else 2 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{max(digits, 2)}f}")


def columns_of(selected: Sequence[dict]) -> list[str]:
    """The columns in which at least one point has a value."""
    return [m for m in COLUMNS if any(value(p, m) is not None for p in selected)]


def main_table(results: dict, task: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the task's table: methods over their seeds, then the floors."""
    selected = points(results, "main", task)
    columns = columns_of(selected)
    names = list(dict.fromkeys(p["method"] for p in selected))
    floor_names = [n for n in names if n in floors.ALL]
    rows = []
    for name in [n for n in names if n not in floor_names] + floor_names:
        seeds = [p for p in selected if p["method"] == name]
        rows.append([title(name), *(cell(over_seeds(seeds, m)) for m in columns)])
    return ["", *(COLUMNS[m] for m in columns)], rows


def series_table(
    results: dict, part: str, task: str, axis: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a part with one seed: a row per point, values with their intervals."""
    selected = points(results, part, task)
    columns = columns_of(selected)
    rows = []
    for p in selected:
        entries = [p["result"]["metrics"].get(m) for m in columns]
        name = title(p["method"])
        name += "" if p["series"] == p["method"] else f": {p['series']}"
        x = "" if p["x"] is None else f"{p['x']:g}"
        rows.append([name, x, *(map(interval, entries))])
    header = ["", axis, *(COLUMNS[m] for m in columns)]
    if part == "work":
        header.insert(2, "s an image")
        for row, p in zip(rows, selected, strict=True):
            row.insert(2, f"{p['result'][plan.PACE]:.3g}")
    if not any(row[1] for row in rows):
        header, rows = header[:1] + header[2:], [row[:1] + row[2:] for row in rows]
    return header, rows


def interval(entry: dict | None) -> str:
    """The cell of a value with its 95% interval over images, such as `12.3 [11.8, 12.9]`."""
    if entry is None:
        return ""
    v = entry["value"]
    digits = 3 if abs(v) < 1 else 2 if abs(v) < 10 else 1
    if entry["low"] is None:
        return f"{v:.{digits}f}"
    return f"{v:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def published_table(task: str) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of the published results; None for tasks without any."""
    if task not in published.TABLE:
        return None
    rows = [[name, *map(cell, row)] for name, row in published.TABLE[task].items()]
    return ["published", *published.METRICS], rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


# Part, heading, name of the axis.
SECTIONS = (
    ("fronts", "Realism against faithfulness", "at"),
    ("ablations", "Ablations", ""),
    ("work", "Quality against time", "at"),
    ("convergence", "Training steps of the guiding network", "steps"),
)


def report(results: dict) -> str:
    """The benchmark as a Markdown document."""
    parts = [
        "# Benchmark",
        "",
        "Written by `bash launch/benchmark.sh`; see `report.html` beside it.",
    ]
    for task, about in tasks(results).items():
        parts += ["", f"## {task}", "", context(results, task, about)]
        main = main_table(results, task)
        if main[1]:
            parts += ["", markdown(*main)]
        if papers := published_table(task):
            parts += ["", markdown(*papers)]
        for part, heading, axis in SECTIONS:
            table = series_table(results, part, task, axis)
            if table[1]:
                parts += ["", f"### {heading}", "", markdown(*table)]
    return "\n".join(parts) + "\n"


def context(results: dict, task: str, about: dict) -> str:
    """A sentence about the images, reference, seeds, dates and devices of a task's results."""
    provenance = [r["made"] for r in results["runs"].values() if r["task"] == task]
    devices = ", ".join(sorted({m["device"] for m in provenance}))
    dates = sorted(m["written"][:10] for m in provenance)
    seeds = len({p["seed"] for p in results["points"] if p["task"] == task})
    when = "" if not dates else f" between {dates[0]} and {dates[-1]}, on {devices}"
    return (
        f"{about['images']} {about['split']} images at {about['image_size']}²; realism against the "
        f"{about['reference']['images']} {about['reference']['split']} images of "
        f"{about['reference']['domain']}; mean ± standard deviation over {seeds} seed(s), or a "
        f"value of seed 0; in brackets, 95% intervals over images{when}."
    )
