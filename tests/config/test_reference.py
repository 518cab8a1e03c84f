"""The table of all keys, its page, and the sentences for keys of earlier versions."""

from pathlib import Path

import pytest

from cdsde.config import base, key_paths, reference, renamed
from cdsde.config.keys import KEYS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_every_key_is_in_the_config_and_has_a_meaning():
    assert sorted(key_paths(base())) == sorted(KEYS)
    assert len(KEYS) < 267
    for key, setting in KEYS.items():
        assert setting.meaning.endswith((".", "`")), key


def test_the_page_is_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert text == reference.page(), "python -m cdsde.config.reference > docs/configuration.md"


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("edit.seed", "config.edit.seed is now config.sample.seed"),
        ("fastcut.channels", "config.fastcut.channels is now config.cut.channels"),
        ("train.score.fine_tune", "config.train.score.fine_tune is now config.train.fine_tune"),
        ("contrastive_sde.band", "config.contrastive_sde.band is gone: no result needed it"),
        ("train.latent.augment.shift", "is now config.train.latent.shift"),
    ],
)
def test_a_key_of_an_earlier_version_is_answered(key, sentence):
    assert sentence in (renamed.about(key) or "")


def test_what_renamed_keys_became_is_there():
    for pattern, now in renamed.RENAMED:
        if "\\1" not in now:
            assert now in KEYS, pattern
    assert renamed.about("sample.seed") is None
