"""Figures of the results, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from cdsde.benchmark import floors, plan, summary
from cdsde.config import title
from cdsde.evaluate import shapes

COLOURS = {
    "sdedit": "#7a7a7a",
    "ilvr": "#2a9d8f",
    "egsde": "#e07a1f",
    "contrastive_sde": "#3b5bdb",
    "sddm": "#b08900",
    "cyclediffusion": "#2b8a3e",
    "ddib": "#862e9c",
    "cut": "#c2255c",
    "fastcut": "#ae3ec9",
    floors.IDENTITY: "#111111",
    floors.COLOURS: "#111111",
    floors.RETRIEVAL: "#111111",
    floors.TRUTH: "#111111",
}
SERIES = ("#111111", "#7a7a7a", "#2a9d8f", "#3b5bdb", "#c2255c")
REALISM = ("FD-EffNetLite0-block4", "KID-EffNetLite0 x1000")
LINES = {"λ_i": ":", "λ": "--", "λ_d": "-.", "λ_s": "-.", "λ_c": (0, (5, 1, 1, 1))}
LINES["M, colours matched"] = (0, (1, 1))
CONTENT = {
    "L2 to source": "L2 to source (lower: more faithful)",
    "L2 to true target": "L2 to the true target (lower: nearer to it)",
    shapes.BY_FEATURES: "legible by features (higher: more are)",
}
SHAPES = "*osD^vPX"
MARKERS = {floors.IDENTITY: "s", floors.COLOURS: "D", floors.RETRIEVAL: "^", floors.TRUTH: "*"}


def axes(results: dict, task: str) -> tuple[str, ...]:
    """The metrics of content that fronts are drawn over: truth, where shape changes."""
    points = summary.points(results, "fronts", task)
    shaped = summary.shaped(points)
    return ("L2 to true target", shapes.BY_FEATURES) if shaped else ("L2 to source",)


def fronts(results: dict, task: str, content: str) -> str | None:
    """Realism against content, one line per method and series; None without points."""
    points = summary.points(results, "fronts", task)
    if not points:
        return None
    extra = [p for p in summary.points(results, "main", task) if p["method"] in MARKERS]

    def draw(ax, metric):
        for method, series in dict.fromkeys((p["method"], p["series"]) for p in points):
            line_points = [p for p in points if (p["method"], p["series"]) == (method, series)]
            x = [summary.value(p, content) for p in line_points]
            y, error = _values(line_points, metric)
            colour = COLOURS.get(method)
            line = LINES.get(series, "-")
            style = dict(marker="o", ms=4, capsize=2, lw=1.3, ls=line)
            if "matched" in series:
                style["mfc"] = "white"
            label = f"{title(method)}, {series}"
            ax.errorbar(x, y, error, color=colour, label=label, **style)
            for p, a, b in zip(line_points, x, y, strict=True):
                ax.annotate(f"{p['x']:g}", (a, b), (3, -9), fontsize=6, color=colour,
                            textcoords="offset points")  # fmt: skip
        for p in extra:
            xy = summary.value(p, content), summary.value(p, metric)
            label = title(p["method"])
            ax.plot(*xy, MARKERS[p["method"]], color="black", ms=6, label=label)
        ax.set_xlabel(CONTENT[content])
        # Logarithmic, since most points are close together and ILVR's are far above.
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis)

    return _panels(draw, REALISM, height=6.5, legend_below=True)


def curves(results: dict, part: str, task: str, axis: str) -> str | None:
    """Metrics over the part's logarithmic axis, one line per method and series; None if empty."""
    points = summary.points(results, part, task)
    if not points:
        return None
    lines = list(dict.fromkeys((p["method"], p["series"]) for p in points))
    series = list(dict.fromkeys(s for _, s in lines))

    def draw(ax, metric):
        for method, name in lines:
            line_points = [p for p in points if (p["method"], p["series"]) == (method, name)]
            x = [p["x"] for p in line_points]
            y, error = _values(line_points, metric)
            plain = name == method
            colour = COLOURS.get(method) if plain else SERIES[series.index(name) % len(SERIES)]
            style = "-" if plain or method != "sdedit" else ":"
            label = title(method) + ("" if plain else f", {name}")
            if len(x) == 1:
                # The run at every level: its interval is a band to compare the others with.
                ax.axhspan(y[0] - error[0][0], y[0] + error[1][0], color=colour, alpha=0.08)
            ax.errorbar(x, y, error, ls=style, marker="o", ms=4, capsize=2, lw=1.2, color=colour,
                        label=label)  # fmt: skip
        ax.set_xscale("log")
        # A tick at each measured value: powers of ten alone would be too few.
        ax.set_xticks(sorted({p["x"] for p in points}), minor=False)
        ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(axis="x", labelsize=6.5)  # 200 and 250 would overlap
        ax.set_xlabel(axis)
        if metric == REALISM[-1]:
            ax.legend(fontsize=7, frameon=False)

    return _panels(draw, REALISM)


def times(results: dict, task: str) -> str | None:
    """Realism against the time an image takes, a line per method and series; None without points.

    Numbers at the points are steps, n of every n-th step, or levels.
    """
    points = summary.points(results, "work", task)
    if not points:
        return None
    series = list(dict.fromkeys(p["series"] for p in points))

    def draw(ax, metric):
        for method, name in dict.fromkeys((p["method"], p["series"]) for p in points):
            line_points = [p for p in points if (p["method"], p["series"]) == (method, name)]
            line_points.sort(key=lambda p: p["result"][plan.PACE])
            x = [p["result"][plan.PACE] for p in line_points]
            y, error = _values(line_points, metric)
            marker, colour = SHAPES[series.index(name) % len(SHAPES)], COLOURS.get(method)
            label = f"{title(method)}, {name}"
            size = 11 if name == "as configured" else 5
            ax.plot(x, y, ls=":", lw=1, marker=marker, ms=size, color=colour, label=label)
            if name == "as configured":  # its interval is a band to compare the others with
                low, high = y[0] - error[0][0], y[0] + error[1][0]
                ax.axhspan(low, high, color=colour, alpha=0.08)
            for p, a, b in zip(line_points, x, y, strict=True):
                ax.annotate(f"{p['x']:g}", (a, b), (4, 3), fontsize=6, color=colour,
                            textcoords="offset points")  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="seconds an image")
        _plain_ticks(ax.xaxis)
        _plain_ticks(ax.yaxis)

    return _panels(draw, REALISM, height=6.5, legend_below=True)


def distributions(results: dict, task: str) -> str | None:
    """Distributions of single images' values by every method (seed 0); None without points."""
    points = [p for p in summary.points(results, "main", task) if "per_image" in p["result"]]
    points = [p for p in points if p["method"] not in (floors.IDENTITY, floors.MEAN, floors.TRUTH)]
    if not points:
        return None
    to = "true target" if summary.shaped(points) else "source"
    metrics = (f"L2 to {to}", f"SSIM to {to}")

    def draw(ax, metric):
        values = [p["result"]["per_image"].get(metric, [np.nan]) for p in points]
        parts = ax.violinplot(values, orientation="horizontal", showmedians=True, widths=0.8)
        for body, p in zip(parts["bodies"], points, strict=True):
            body.set_color(COLOURS.get(p["method"], "#444444"))
        ax.set_yticks(range(1, len(points) + 1), [title(p["method"]) for p in points])
        ax.set_xlabel(metric)

    return _panels(draw, metrics, titled=False)


def _plain_ticks(axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each power of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _values(points, metric):
    entries = [p["result"]["metrics"][metric] for p in points]
    y = np.array([e["value"] for e in entries])
    low = np.array([e["value"] if e["low"] is None else e["low"] for e in entries])
    high = np.array([e["value"] if e["high"] is None else e["high"] for e in entries])
    return y, np.array([np.maximum(y - low, 0), np.maximum(high - y, 0)])


def _panels(
    draw, metrics: Sequence[str], titled: bool = True, height: float = 4, legend_below: bool = False
) -> str:
    # Imported here: the import takes a second, and only the report needs it.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Fixed ids and no date, so that equal results give equal files.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cdsde", "font.size": 9}):
        fig, axes = plt.subplots(
            1, len(metrics), figsize=(5.4 * len(metrics), height), squeeze=False
        )
        for ax, metric in zip(axes[0], metrics, strict=True):
            draw(ax, metric)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25, lw=0.5)
            if titled:
                ax.set_ylabel(f"{summary.COLUMNS.get(metric, metric)}")
        if legend_below:
            handles, labels = axes[0][0].get_legend_handles_labels()
            fig.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
        fig.tight_layout(rect=(0, 0.17 * legend_below, 1, 1))
        out = io.StringIO()
        fig.savefig(out, format="svg", metadata={"Date": None})
        plt.close(fig)
    text = out.getvalue()
    return text[text.index("<svg") :]
