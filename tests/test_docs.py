"""What the pages quote is what the code says."""

import re
from pathlib import Path

import pytest

from cdsde import load_config
from cdsde.config.keys import KEYS
from cdsde.weights import __main__ as weights_cards

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = {
    line.strip()
    for folder in ("cdsde", "configs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    for line in path.read_text(encoding="utf-8").splitlines()
}


def test_extending_quotes_the_code():
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 3
    for line in (line.strip() for block in blocks for line in block.splitlines()):
        assert not line or line == "..." or line in LINES, line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_overrides_in_commands_name_keys(path):
    for key in re.findall(r"--config\.([\w.]+)=", path.read_text(encoding="utf-8")):
        assert key in KEYS or key in ("KEY", "weights.STAGE"), key


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_configs_in_commands_are_there(path):
    for name in re.findall(r"--config=([\w/.]+)", path.read_text(encoding="utf-8")):
        assert load_config(name).method, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_are_there(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:cdsde|tests|launch|colabs|configs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists() or "NAME" in name, name


def test_the_published_networks_are_those_of_the_cards():
    cards = weights_cards.cards()
    assert len(cards) > 40
    known = {path.stem for path in (ROOT / "configs").glob("*.py")}
    for name, card in cards.items():
        assert all(str(value).strip() for value in card.values()), name
        tasks = re.findall(r"\b\w+2\w+\b", card["tasks"])
        assert set(tasks) <= known, name
    assert weights_cards.markdown() in (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert cards["google_ddpm_ema_cat_256"]["weights"] in weights_cards.text()
