"""The finding of each section of the report, as a sentence that is computed from its points."""

from __future__ import annotations

from collections.abc import Sequence

from cdsde.benchmark import floors, summary
from cdsde.config import title

STYLE = ("KID x1000", "KID-EffNetLite0 x1000")
FRECHET = ("FID", "FD-EffNetLite0-block4")
CONTENT = ("L2 to true target", "L2 to source")


def main(results: dict, task: str) -> str:
    """The methods that are nearest to the style and to the content; "" without methods."""
    points = summary.points(results, "main", task)
    names = list(dict.fromkeys(p["method"] for p in points if p["method"] not in floors.ALL))
    if not names:
        return ""

    def mean(name, metric):
        found = summary.over_seeds([p for p in points if p["method"] == name], metric)
        return float("inf") if found is None else found[0]

    told = []
    for metric in filter(None, (_style(points), _frechet(points), _content(points))):
        best, unchanged = min(names, key=lambda n: mean(n, metric)), mean(floors.IDENTITY, metric)
        told.append(f"{name_of(metric)}: {title(best)}, {mean(best, metric):.3g}")
        if 0 < unchanged < float("inf"):
            told[-1] += f" (the unchanged source: {unchanged:.3g})"
    return f"Lowest {'; '.join(told)}." if told else ""


def fronts(results: dict, task: str) -> str:
    """The point that is the most like the style among those no worse in content than SDEdit's."""
    points = summary.points(results, "fronts", task)
    style, content = _style(points), _content(points)
    plain = [
        p
        for p in summary.points(results, "main", task, method="sdedit", seed=0)
        if content is not None and summary.value(p, content) is not None
    ]
    if style is None or content is None or not plain:
        return ""
    limit = _value(plain[0], content)
    near = [p for p in points if _value(p, content) <= limit]
    if not near:
        return f"No point has a lower {name_of(content)} than SDEdit as configured ({limit:.3g})."
    best = min(near, key=lambda p: _value(p, style))
    return (
        f"Among the points whose {name_of(content)} is at most SDEdit's as configured "
        f"({limit:.3g}), {_place(best)} has the lowest {name_of(style)}, {_value(best, style):.3g} "
        f"(SDEdit's: {_value(plain[0], style):.3g})."
    )


def ablations(results: dict, task: str) -> str:
    """The part of Contrastive-SDE whose absence changes the likeness to the style most."""
    points = summary.points(results, "ablations", task, method="contrastive_sde")
    frechet, whole = _frechet(points), _of_series(points, "as configured")
    parts = [p for p in points if p["series"].startswith("without ")]
    if frechet is None or whole is None or not parts:
        return ""
    configured = _value(whole, frechet)
    most = max(parts, key=lambda p: abs(_value(p, frechet) - configured))
    change = "rises" if _value(most, frechet) > configured else "falls"
    return (
        f"{title('contrastive_sde')}'s {name_of(frechet)} {change} most {most['series']}: "
        f"from {configured:.3g} to {_value(most, frechet):.3g}."
    )


def work(results: dict, task: str) -> str:
    """The fewest evaluations with which SDEdit is within every interval of every level."""
    points = summary.points(results, "work", task, method="sdedit")
    whole = _of_series(points, "every level")
    if whole is None:
        return ""
    metrics = whole["result"]["metrics"]
    intervals = [(m, metrics[m]) for m in summary.columns_of([whole])]

    def within(p):
        return all(e["low"] is None or e["low"] <= _value(p, m) <= e["high"] for m, e in intervals)

    enough = [p for p in points if p != whole and within(p)]
    if not enough:
        return "No solver with few evaluations is within the intervals of every level."
    first = min(enough, key=lambda p: p["x"])
    return (
        f"{title('sdedit')} by {first['series']} with {first['x']:g} evaluations is within the "
        f"interval of all {whole['x']:g} levels in every column."
    )


def convergence(results: dict, task: str) -> str:
    """Whether the guide still gains with the training of its network."""
    told = []
    for method in dict.fromkeys(p["method"] for p in summary.points(results, "convergence", task)):
        line = summary.points(results, "convergence", task, method=method, series=method)
        frechet = _frechet(line)
        if frechet is None or len(line) < 2:
            continue
        first, last = (f(line, key=lambda p: p["x"]) for f in (min, max))
        told.append(
            f"{title(method)}'s {name_of(frechet)} is {_value(first, frechet):.3g} at step "
            f"{first['x']:g} and {_value(last, frechet):.3g} at step {last['x']:g}"
        )
    return "; ".join(told) + "." if told else ""


FINDINGS = {
    "fronts": fronts,
    "ablations": ablations,
    "work": work,
    "convergence": convergence,
}


def name_of(metric: str) -> str:
    """A metric in running text."""
    return {
        **dict.fromkeys(STYLE, "kernel distance"),
        **dict.fromkeys(FRECHET, "Fréchet distance"),
    }.get(metric, metric)


def _style(points: Sequence[dict]) -> str | None:
    """The kernel distance that was measured."""
    return _measured(points, STYLE)


def _frechet(points: Sequence[dict]) -> str | None:
    """The Fréchet distance that was measured; early features depend less on the score network."""
    return _measured(points, FRECHET)


def _content(points: Sequence[dict]) -> str | None:
    """Truth counts where shape changes; drawings of one emoji differ more than translations do."""
    return _measured(points, CONTENT if summary.shaped(points) else CONTENT[::-1])


def _measured(points: Sequence[dict], names: Sequence[str]) -> str | None:
    return next((n for n in names if any(summary.value(p, n) is not None for p in points)), None)


def _of_series(points: Sequence[dict], series: str) -> dict | None:
    return next((p for p in points if p["series"] == series), None)


def _value(point: dict, metric: str) -> float:
    value = summary.value(point, metric)
    return float("inf") if value is None else value


def _place(point: dict) -> str:
    series = "" if point["series"] == point["method"] else f", {point['series']}"
    return f"{title(point['method'])}{series} = {point['x']:g}"
