"""The sentences at the head of the report's sections say what the points show."""

import pytest

from cdsde.benchmark import findings, floors

STYLE, L2 = "KID-EffNetLite0 x1000", "L2 to source"


def results_of(*points) -> dict:
    """Results with points of `(part, method, series, x, {metric: value})`."""
    results = {"tasks": {}, "points": [], "runs": {}}
    for n, (part, method, series, x, metrics) in enumerate(points):
        entries = {k: {"value": v, "low": v - 2, "high": v + 2} for k, v in metrics.items()}
        results["runs"][str(n)] = {"task": "t", "metrics": entries}
        place = dict(part=part, task="t", method=method, series=series, x=x, seed=0, run=str(n))
        results["points"].append(place)
    return results


def point(part, method, series, x, style, content, metric=L2):
    return part, method, series, x, {STYLE: style, metric: content}


SDEDIT = point("main", "sdedit", "sdedit", None, 28, 5)


def test_the_nearest_methods_and_what_no_translation_has():
    source = point("main", floors.IDENTITY, floors.IDENTITY, None, 18, 0)
    egsde = point("main", "egsde", "egsde", None, 15, 6)
    told = findings.main(results_of(source, SDEDIT, egsde), "t")
    assert told == (
        "Lowest kernel distance: EGSDE, 15 (the unchanged source: 18); L2 to source: SDEdit, 5."
    )
    assert findings.main(results_of(source), "t") == ""


def test_where_characters_are_legible_the_truth_counts():
    both = {STYLE: 20, "legible": 0.9, L2: 5, "L2 to true target": 39}
    told = findings.main(results_of(("main", "sdedit", "sdedit", None, both)), "t")
    assert told == "Lowest kernel distance: SDEdit, 20; L2 to true target: SDEdit, 39."


def test_fronts_are_read_at_the_content_of_sdedit():
    near = point("fronts", "egsde", "M", 250, 21, 5)
    nearer = point("fronts", "egsde", "M", 100, 24, 4)
    far = point("fronts", "egsde", "M", 400, 9, 6)
    told = findings.fronts(results_of(SDEDIT, near, nearer, far), "t")
    assert "EGSDE, M = 250 has the lowest kernel distance, 21 (SDEdit's: 28)" in told
    assert findings.fronts(results_of(SDEDIT, far), "t").startswith("No point has a lower")
    assert findings.fronts(results_of(near), "t") == ""


def early(part, method, series, x, value):
    return part, method, series, x, {"FD-EffNetLite0-block4": value}


def test_the_part_without_which_the_style_is_lost():
    def row(series, value):
        return early("ablations", "contrastive_sde", series, None, value)

    rows = [row("as configured", 20), row("without the low-pass energy", 24)]
    told = findings.ablations(results_of(*rows, row("without the contrast of domains", 33)), "t")
    assert told == (
        "Contrastive-SDE's Fréchet distance rises most without the contrast of domains: from 20 "
        "to 33."
    )
    falls = findings.ablations(results_of(rows[0], row("without the low-pass energy", 15)), "t")
    assert falls.endswith("falls most without the low-pass energy: from 20 to 15.")


@pytest.mark.parametrize(
    ("style", "content", "expected"),
    [
        (29.9, 5, "SDEdit by DDIM with 6 evaluations is within the interval of all 150 levels"),
        (31, 5, "No solver with few evaluations is within the intervals of every level."),
        (29.9, 8, "No solver with few evaluations is within the intervals of every level."),
    ],
)
def test_the_fewest_evaluations_that_do(style, content, expected):
    every = point("work", "sdedit", "every level", 150, 28, 5)
    few = point("work", "sdedit", "DDIM", 6, style, content)
    assert findings.work(results_of(every, few), "t").startswith(expected)


def test_what_training_gains():
    steps = [early("convergence", "egsde", "egsde", x, y) for x, y in ((1, 40), (400, 30))]
    told = findings.convergence(results_of(*steps), "t")
    assert told == "EGSDE's Fréchet distance is 40 at step 1 and 30 at step 400."
