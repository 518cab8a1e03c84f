"""The report: results as one self-contained HTML file with tables, figures and sheets."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from cdsde.benchmark import plots, summary

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
h1 { margin-bottom: .2rem } h2 { margin-top: 3rem; border-bottom: 1px solid #ddd }
p.about { color: #555; max-width: 52rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums;
        margin: 1rem 0 }
th, td { padding: .25rem .3rem; text-align: right; border-bottom: 1px solid #eee;
         white-space: nowrap }
th { white-space: normal; vertical-align: bottom; font-weight: 600 }
th:first-child, td:first-child { text-align: left }
svg, img { max-width: 100%; height: auto } img { image-rendering: pixelated }
nav a { margin-right: 1.2rem }
details { margin: 1rem 0 } summary { cursor: pointer; color: #3b5bdb }
"""
AXES = {"solvers": "network evaluations", "convergence": "training steps"}
INTRODUCTION = (
    "Methods that trade likeness to the source for likeness to the target cannot be compared by "
    "one number: read the fronts. Distances with EffNetLite0 in their name are not FID. Retrieval "
    "(the nearest training image of the target), the source unchanged, the source in the target's "
    "colours and the mean image show the scores of each metric without any translation."
)


def page(results: dict, folder: Path) -> str:
    """The report as HTML; `folder` contains `sheets/TASK.png`."""
    body = ["<h1>Benchmark</h1>", f'<p class="about">{INTRODUCTION}</p>']
    links = (f'<a href="#{escape(task)}">{escape(task)}</a>' for task in results["tasks"])
    body.append(f"<nav>{''.join(links)}</nav>")
    for task, about in results["tasks"].items():
        body += _task(results, task, about, folder)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>cdsde benchmark</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _task(results: dict, task: str, about: dict, folder: Path) -> list[str]:
    text = escape(summary.context(results, task, about))
    parts = [f'<h2 id="{escape(task)}">{escape(task)}</h2>', f'<p class="about">{text}</p>']
    main = summary.main_table(results, task)
    if main[1]:
        parts.append(_table(*main))
    if published := summary.published_table(task):
        parts.append(_table(*published))
    sheet = folder / "sheets" / f"{task}.png"
    if sheet.exists():
        data = base64.b64encode(sheet.read_bytes()).decode()
        parts.append(
            f'<h3>The same images</h3><img alt="{task}" src="data:image/png;base64,{data}">'
        )
    for part, heading, axis in summary.SECTIONS:
        header, rows = summary.series_table(results, part, task, axis)
        if not rows:
            continue
        parts.append(f"<h3>{heading}</h3>")
        if part == "fronts":
            parts.append(plots.fronts(results, task))
        elif part in AXES:
            parts.append(plots.curves(results, part, task, AXES[part]))
        table = _table(header, rows)
        parts.append(
            table
            if part == "ablations"
            else f"<details><summary>the numbers</summary>{table}</details>"
        )
    if figure := plots.distributions(results, task):
        parts += ["<h3>Single images</h3>", figure]
    return parts


def _table(header, rows) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = ("".join(f"<td>{escape(c)}</td>" for c in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
