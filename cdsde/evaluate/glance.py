"""The table for a first look: a number each for content, structure and style."""

from __future__ import annotations

from cdsde.config import title
from cdsde.evaluate.shapes import LEGIBLE
from cdsde.runtime import progress

# Heading, and the metrics that can stand below it, best first.
COLUMNS = (
    ("{} ↓", ("L2 to true target", "L2 to source")),
    ("{} ↑", (LEGIBLE, "SSIM to true target", "SSIM to source")),
    ("distance in style, {} ↓", ("KID x1000", "KID-EffNetLite0 x1000")),
)


def glance(results: dict[str, dict], floors: dict[str, dict]) -> str:
    """Three numbers for each method and floor, the better direction marked by an arrow.

    Args:
      results: `{method: {metric: {"value": ...}}}`.
      floors: the same of baselines such as the unchanged source; "-" where a metric is missing.
    """
    known = set().union(*results.values())
    chosen = [
        (heading.format(name), name)
        for heading, names in COLUMNS
        for name in [next((n for n in names if n in known), None)]
        if name
    ]
    rows = [
        [title(row), *(f"{values[n]['value']:.3g}" if n in values else "-" for _, n in chosen)]
        for row, values in {**results, **floors}.items()
    ]
    return progress.table(rows, ["", *(heading for heading, _ in chosen)])
