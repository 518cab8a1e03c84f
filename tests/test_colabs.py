"""The notebooks run top to bottom, in a small form, and carry no outputs in git."""

import json
import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "colabs"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_there_are_four():
    names = ["edit_with_words", "energies", "train_on_your_folder", "translate"]
    assert names == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_outputs_are_kept(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not c["outputs"] and c["execution_count"] is None for c in code)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, compiled_programs):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    os.environ.update(
        CDSDE_SMALL="1", MPLBACKEND="agg", JAX_COMPILATION_CACHE_DIR=compiled_programs
    )
    os.environ["PYTHONPATH"] = str(FOLDER.parent)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(FOLDER.parent)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
