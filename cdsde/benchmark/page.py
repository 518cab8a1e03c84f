"""The report: results as one self-contained HTML file with tables, figures and sheets."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from cdsde.benchmark import findings, plots, summary

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1b1b1b; background: #fff; }
h1 { margin-bottom: .2rem } h2 { margin-top: 3rem; border-bottom: 1px solid #ddd }
p { max-width: 60rem } p.about { color: #555 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums;
        margin: 1rem 0 }
th, td { padding: .25rem .3rem; text-align: right; border-bottom: 1px solid #eee;
         white-space: nowrap }
th { white-space: normal; vertical-align: bottom; font-weight: 600 }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
img { max-width: none }
svg { width: 100%; min-width: 860px; max-width: 1400px; height: auto }
nav ul { padding-left: 1.2rem; margin: .2rem 0 } nav li { margin: .1rem 0 }
nav ul ul { padding: 0 } nav li li { display: inline-block; margin-right: 1rem }
details { margin: 1rem 0 } summary { cursor: pointer; color: #3b5bdb }
"""
INTRODUCTION = (
    "Methods that trade likeness to the source for likeness to the target cannot be compared by "
    "one number: compare those of the same L2 to the source. Distances with EffNetLite0 in their "
    "name are not FID. Retrieval (the nearest training image of the target), the source unchanged, "
    "the source in the target's colours and the mean image show the scores of each metric without "
    "any translation."
)


def page(results: dict, folder: Path) -> str:
    """The report as HTML; `folder` contains `sheets/TASK.png`."""
    known = summary.tasks(results)
    sections = {task: _sections(results, task, folder) for task in known}
    body = ["<h1>Benchmark</h1>", f'<p class="about">{INTRODUCTION}</p>', _contents(sections)]
    for task, about in known.items():
        text = escape(summary.context(results, task, about))
        body += [f'<h2 id="{escape(task)}">{escape(task)}</h2>']
        body += [_paragraph(findings.main(results, task)), f'<p class="about">{text}</p>']
        for heading, content in sections[task].items():
            if heading:
                body.append(f'<h3 id="{_anchor(task, heading)}">{heading}</h3>')
            body += content
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>cdsde benchmark</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _contents(sections: dict[str, dict]) -> str:
    """The list of contents: tasks, and below each its sections."""

    def link(anchor, text):
        return f'<li><a href="#{anchor}">{escape(text)}</a>'

    items = []
    for task, parts in sections.items():
        inner = [f"{link(_anchor(task, heading), heading)}</li>" for heading in parts if heading]
        items.append(f"{link(escape(task), task)}<ul>{' '.join(inner)}</ul></li>")
    return f"<nav><ul>{''.join(items)}</ul></nav>"


def _sections(results: dict, task: str, folder: Path) -> dict[str, list[str]]:
    """The content of each section by its heading; that of the tables has none."""
    tables = []
    main = summary.main_table(results, task)
    if main[1]:
        tables.append(_table(*main))
    if published := summary.published_table(task):
        tables.append(_table(*published))
    parts = {"": tables}
    sheet = folder / "sheets" / f"{task}.png"
    if sheet.exists():
        data = base64.b64encode(sheet.read_bytes()).decode()
        image = f'<img alt="{task}" src="data:image/png;base64,{data}">'
        parts["The same images"] = [f'<div class="wide">{image}</div>']
    for part, heading, axis in summary.SECTIONS:
        header, rows = summary.series_table(results, part, task, axis)
        if not rows:
            continue
        parts[heading] = [_paragraph(findings.FINDINGS[part](results, task))]
        if part == "fronts":
            parts[heading] += [
                _figure(plots.fronts(results, task, x)) for x in plots.axes(results, task)
            ]
        elif part == "work":
            parts[heading].append(_figure(plots.times(results, task)))
        elif part == "convergence":
            parts[heading].append(_figure(plots.curves(results, part, task, "training steps")))
        table = _table(header, rows)
        parts[heading].append(
            table
            if part == "ablations"
            else f"<details><summary>the numbers</summary>{table}</details>"
        )
    if figure := plots.distributions(results, task):
        parts["Single images"] = [_figure(figure)]
    return parts


def _anchor(task: str, heading: str) -> str:
    return escape(f"{task}-{heading.lower().replace(' ', '-')}")


def _paragraph(text: str) -> str:
    return f"<p><strong>{escape(text)}</strong></p>" if text else ""


def _figure(svg: str | None) -> str:
    return f'<div class="wide">{svg}</div>' if svg else ""


def _table(header, rows) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = ("".join(f"<td>{escape(c)}</td>" for c in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
