"""The notebooks run top to bottom, in a small form, show a picture at once, and keep no outputs."""

import ast
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "colabs"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PICTURE_WITHIN = 3  # cells


def cells_of(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def code_of(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_four():
    names = ["edit_with_words", "energies", "train_on_your_folder", "translate"]
    assert names == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_outputs_are_kept(name):
    code = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]
    assert code and all(not c["outputs"] and c["execution_count"] is None for c in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_address_of_a_repository(name):
    """A checkout or the package index is enough, so nobody has to fill an address in."""
    text = "\n".join("".join(cell["source"]) for cell in cells_of(name))
    assert not re.search(r"YOUR_GIT|git clone|git\+|\.git\b|https?://\S*git", text, re.IGNORECASE)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_picture_is_shown_within_the_first_cells(name):
    """`plt.show()`, `show(...)` or `show_...(...)` is called, not only inside of a definition."""
    definitions = ast.FunctionDef | ast.ClassDef
    called = set()
    for source in code_of(cells_of(name)[:PICTURE_WITHIN]):
        for statement in ast.parse(source).body:
            if not isinstance(statement, definitions):
                calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
                called |= {getattr(f, "attr", getattr(f, "id", "")) for f in calls}
    assert any(re.match(r"show(_|$)", function) for function in called)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_installs_from_the_checkout_or_else_the_package(name, monkeypatch, tmp_path):
    source = code_of(cells_of(name))[0]
    assert len(source.splitlines()) <= 12
    installed = []
    monkeypatch.setattr(subprocess, "check_call", lambda command: installed.append(command[-1]))
    exec(source, {})
    assert installed == []  # it is there already
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for folder in (FOLDER, FOLDER.parent, tmp_path):
        monkeypatch.chdir(folder)
        exec(source, {})
    assert installed == [str(FOLDER.parent), str(FOLDER.parent), "cdsde"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, compiled_programs, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    environment = {
        "CDSDE_SMALL": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JAX_COMPILATION_CACHE_DIR": compiled_programs,
        "PYTHONPATH": str(FOLDER.parent),
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    # In any folder: configs are found by name.
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    first = [c for c in notebook.cells[:PICTURE_WITHIN] if c.cell_type == "code"]
    assert any("image/png" in o.get("data", {}) for cell in first for o in cell.outputs)
