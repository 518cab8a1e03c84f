"""Every editor on the shipped model of emoji and words, for the part "edits".

Each editor edits the same test images and is measured as --mode=eval does. An interrupted run
continues, since an edit keeps what is finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cdsde import api
from cdsde.benchmark import summary
from cdsde.config import EDITORS
from cdsde.edit import run as edit_run
from cdsde.evaluate import edits
from cdsde.runtime import files

TASK = "emoji_words"
# Title, editor and changes of each row; the words are those that the model knows best.
NULL_TEXT = {"edit.inversion": "null_text"}
ROWS = [(name, name, {}) for name in EDITORS]
ROWS += [(f"{name}, null text", name, NULL_TEXT) for name in ("ddim", "p2p")]
WORDS = {"edit.source": "dark", "edit.target": "light", "sample.limit": 12, "sample.sheet": 0}
COLUMNS = {
    "L2 to source": "L2 to source ↓",
    "SSIM to source": "SSIM to source ↑",
    "EffNetLite0 direction": "direction ↑",
}


def go(workdir: Path, output: Path, overrides: dict, editors: Sequence[str] = EDITORS) -> str:
    """Edits, measures, and writes OUTPUT/edits.json and edits.md; returns the table.

    Args:
      workdir: the pictures go to WORKDIR/edits/TITLE.
      output: the folder of the results.
      overrides: overrides of every editor's config.
      editors: the editors, of `config.EDITORS`.
    """
    results = {}
    told = api.load_config(TASK, {**WORDS, **overrides})
    for title, name, changes in ROWS:
        if name in editors:
            config = api.load_config(TASK, {**WORDS, **overrides, "method": name, **changes})
            folder = Path(workdir) / "edits" / title.replace(", ", "-").replace(" ", "_")
            edit_run.edit(config, folder)
            results[title] = edits.evaluate_edits(config, folder)[name]
    first = next(iter(results.values()))
    columns = [metric for metric in COLUMNS if metric in first]
    rows = [[t, *(summary.interval(row.get(m)) for m in columns)] for t, row in results.items()]
    table = summary.markdown(["editor", *(COLUMNS[m] for m in columns)], rows)
    count = first["L2 to source"]["images"]
    words = f"`{told.edit.source}` → `{told.edit.target}`"
    about = f"{TASK}, {words}, {count} images, seed {told.sample.seed}."
    text = f"# Edits by words\n\n{about}\n\n{table}\n"
    files.write_json(output / "edits.json", json.loads(json.dumps(results)))
    files.write_bytes(output / "edits.md", text.encode())
    return text
