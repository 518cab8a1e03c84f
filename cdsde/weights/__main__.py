"""`python -m cdsde.weights`: the published networks that cdsde reads, from `weights/cards/*.yaml`.

python -m cdsde.weights              a card each
python -m cdsde.weights --markdown   the table of docs/weights.md
"""

from __future__ import annotations

import contextlib
import sys
from importlib import resources
from typing import Any

import yaml

FIELDS = (
    "project weights link licence sha256 format architecture schedule trained_on tasks published "
    "checked"
).split()
COLUMNS = {
    "weights": "file or name",
    "project": "project",
    "trained_on": "trained on",
    "format": "goes to",
    "tasks": "tasks",
    "licence": "licence",
    "published": "published number",
}


def cards() -> dict[str, dict[str, Any]]:
    """All cards by name, with the fields `FIELDS`.

    Raises:
      ValueError: a card lacks a field or has another one.
    """
    found = {}
    folder = resources.files("cdsde") / "weights" / "cards"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = path.name.removesuffix(".yaml")
        found[name] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if list(found[name]) != FIELDS:
            raise ValueError(f"the card {path.name} must have the fields {', '.join(FIELDS)}")
    return found


def text() -> str:
    """Every card, a line a field."""
    width = max(map(len, FIELDS))
    return "\n\n".join(
        "\n".join([name, *(f"  {key:<{width}}  {card[key]}" for key in FIELDS)])
        for name, card in cards().items()
    )


def markdown() -> str:
    """The table of docs/weights.md."""
    lines = [" | ".join(COLUMNS.values()), " | ".join("---" for _ in COLUMNS)]
    for card in cards().values():
        cells = {key: str(card[key]) for key in COLUMNS}
        cells["weights"] = f"[`{cells['weights']}`](https://{_address(card)})"
        lines.append(" | ".join(cells.values()))
    return "\n".join(f"| {line} |" for line in lines)


def _address(card: dict[str, Any]) -> str:
    """Where the weights are, or the page that links to them."""
    return card["link"].removeprefix("linked from ").split(" ")[0]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # of `| head`
        print(markdown() if sys.argv[1:] == ["--markdown"] else text(), flush=True)
