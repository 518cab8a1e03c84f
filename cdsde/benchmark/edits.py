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
from cdsde.data import contact_sheet, inputs, write_png
from cdsde.edit import run as edit_run
from cdsde.evaluate import edits, translations
from cdsde.runtime import files

TASK = "emoji_words"
# Title, editor and changes of each row; the words are those that the model knows best.
NULL_TEXT = {"edit.inversion": "null_text"}
ROWS = [(name, name, {}) for name in EDITORS]
ROWS += [(f"{name}, null text", name, NULL_TEXT) for name in ("ddim", "p2p")]
SHOWN = 6  # images of the sheet, one a row
WORDS = {"edit.source": "dark", "edit.target": "light", "sample.limit": 12, "sample.sheet": 0}
COLUMNS = {
    "L2 to source": "L2 to source ↓",
    "SSIM to source": "SSIM to source ↑",
    "EffNetLite0 direction": "direction ↑",
}


def go(workdir: Path, output: Path, overrides: dict, editors: Sequence[str] = EDITORS) -> str:
    """Edits, measures, and writes a table, its numbers and a sheet of pictures; returns the table.

    They are edits_SOURCE_TARGET.md and .json, and sheets/edits_SOURCE_TARGET.png, with the words of
    `edit.source` and `edit.target`.

    Args:
      workdir: the pictures go to WORKDIR/edits/TITLE.
      output: the folder of the results.
      overrides: overrides of every editor's config.
      editors: the editors, of `config.EDITORS`.
    """
    results, made = {}, {}
    told = api.load_config(TASK, {**WORDS, **overrides})
    for title, name, changes in ROWS:
        if name in editors:
            config = api.load_config(TASK, {**WORDS, **overrides, "method": name, **changes})
            folder = Path(workdir) / "edits" / title.replace(", ", "-").replace(" ", "_")
            made[title] = edit_run.edit(config, folder)
            results[title] = edits.evaluate_edits(config, folder)[name]
    first = next(iter(results.values()))
    columns = [metric for metric in COLUMNS if metric in first]
    rows = [[t, *(summary.interval(row.get(m)) for m in columns)] for t, row in results.items()]
    table = summary.markdown(["editor", *(COLUMNS[m] for m in columns)], rows)
    count = first["L2 to source"]["images"]
    words = f"`{told.edit.source}` → `{told.edit.target}`"
    about = f"{TASK}, {words}, {count} images, seed {told.sample.seed}."
    text = f"# Edits by words\n\n{about}\n\n{table}\n"
    name = f"edits_{told.edit.source}_{told.edit.target}".replace(" ", "_")
    files.write_json(output / f"{name}.json", json.loads(json.dumps(results)))
    files.write_bytes(output / f"{name}.md", text.encode())
    write_png(output / "sheets" / f"{name}.png", sheet(told, made))
    return text


def sheet(config, folders: dict[str, Path]):
    """The first `SHOWN` sources, their reconstruction, and the edit of each folder, uint8."""
    source = inputs.open_input(config)
    reconstruction = next(iter(folders.values())) / edit_run.RECONSTRUCTION
    readers = {"source": translations.resized(config, source)}
    for title, folder in {edit_run.RECONSTRUCTED: reconstruction, **folders}.items():
        readers[title] = translations.written(config, source, folder)
    shown = edit_run.chosen_images(config, source)[:SHOWN]
    return contact_sheet([[read(j) for read in readers.values()] for j in shown], list(readers))
