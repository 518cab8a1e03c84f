"""Damaged files of cdsde are refused in a sentence; tests/campaign damages hundreds."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
from helpers import one_sentence

from cdsde import load_config
from cdsde.weights import resolve

NAME = "encoder-emoji-64"


@pytest.fixture
def file(tmp_path):
    for suffix in ("json", "safetensors"):
        shutil.copy(resolve.shipped_folder() / f"{NAME}.{suffix}", tmp_path)
    return tmp_path / f"{NAME}.safetensors"


def refused(file, expected: str):
    config = load_config("twemoji2fluent", {"weights.encoder": str(file)})
    with pytest.raises(ValueError, match=expected) as error:
        resolve.load(config, file.parent, "encoder")
    assert one_sentence(str(error.value))
    assert file.stem in str(error.value)


def test_a_file_that_ends_too_early(file):
    file.write_bytes(file.read_bytes()[:100_000])
    refused(file, "not a readable safetensors file")
    file.write_bytes(b"")
    refused(file, "not a readable safetensors file: it is too short")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not readable JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "has no architecture of a network"),
        ('{"architecture": {"network": 3}}', "has no architecture of a network"),
        ('{"architecture": {"network": {}}, "data": 3}', "does not name the domains"),
        ('{"architecture": {"network": {}}, "data": {"source": 3}}', "does not name the domains"),
    ],
)
def test_a_damaged_card(file, text, expected):
    file.with_suffix(".json").write_text(text)
    refused(file, expected)


def test_other_parameters_than_the_card_describes(file):
    arrays = safetensors.numpy.load_file(file)
    first = min(arrays)
    file.write_bytes(safetensors.numpy.save({k: v for k, v in arrays.items() if k != first}))
    refused(file, f"1 parameters differ \\(first: {first}\\)")
    file.write_bytes(safetensors.numpy.save(arrays | {first: np.zeros((1, 1), np.float16)}))
    refused(file, f"1 parameters differ \\(first: {first}\\)")
