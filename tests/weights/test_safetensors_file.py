"""Safetensors files are read, and refused where they claim what they do not hold."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from refusals import refused
from safetensors.flax import save_file as save_flax
from safetensors.numpy import save, save_file

from cdsde.weights.torch import safetensors_file

ARRAYS = {
    "single": np.arange(6, dtype=np.float32).reshape(2, 3),
    "double": np.arange(3, dtype=np.float64),
    "half": np.arange(4, dtype=np.float16),
    "count": np.full((), 7),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


def test_safetensors_are_read_as_their_library_reads_them(tmp_path):
    save_file(ARRAYS, tmp_path / "w.safetensors", {"format": "pt"})
    found = safetensors_file.load(tmp_path / "w.safetensors")
    assert set(found) == set(ARRAYS)
    for name, value in ARRAYS.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(found[name], value, strict=True)
    brain = np.arange(3).astype(ml_dtypes.bfloat16)
    save_flax({"x": brain}, tmp_path / "b.safetensors")
    np.testing.assert_array_equal(safetensors_file.load(tmp_path / "b.safetensors")["x"], brain)


def header(entries, data=b"", length=None):
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BILLION = 10**9
LONG = int("9" * 4000)  # Python reads numbers of 4300 digits
HOSTILE = {
    "empty": b"",
    "short": b"\0" * 7,
    "no file of this kind": b"rubbish" * 99,
    "long header": header({}, length=BILLION),
    "longest header": header({}, length=2**64 - 1),
    "nothing": header({}),
    "no JSON": header(b"{"),
    "no UTF-8": header(b"\xff\xfe{}"),
    "deep": header(b"[" * 100_000),
    "a list": header(b"[]"),
    "a number": header({"x": 3}),
    "huge array": header({"x": entry([BILLION], [0, 4 * BILLION])}, b"\0" * 8),
    "huge shape": header({"x": entry([BILLION, BILLION], [0, 8])}, b"\0" * 8),
    "many axes": header({"x": entry([1] * 100_000 + [3], [0, 8])}, b"\0" * 8),
    "as many axes as the header holds": header({"x": entry([BILLION] * 150_000, [0, 8])}),
    "long numbers": header({"x": entry([LONG] * 500, [0, 8])}, b"\0" * 8),
    "few long numbers": header({"x": entry([LONG] * 16, [0, 8])}, b"\0" * 8),
    "long place": header({"x": entry([LONG], [0, 4 * LONG])}, b"\0" * 8),
    "number that is longer": header(b'{"x": %s}' % (b"9" * 10**6)),
    "lists": header(b"[" + b"[]," * 10**6 + b"0]"),
    "names of nothing": header({f"{i:x}": entry([0], [0, 0]) for i in range(100_000)}),
    "long name": header({"x" * 10**6: 3}),
    "name of several lines": header({"x\ny": 3}),
    "negative shape": header({"x": entry([-2, -1], [0, 8])}, b"\0" * 8),
    "fractions": header({"x": entry([2.0], [0, 8])}, b"\0" * 8),
    "negative place": header({"x": entry([2], [-8, 0])}, b"\0" * 8),
    "one offset": header({"x": entry([2], [8])}, b"\0" * 8),
    "overlap": header({"x": entry([2], [0, 8]), "y": entry([2], [4, 12])}, b"\0" * 12),
    "hole": header({"x": entry([2], [4, 12])}, b"\0" * 12),
    "rest": header({"x": entry([1], [0, 4])}, b"\0" * 8),
    "cut": save({"x": np.ones(99, np.float32)})[:-4],
    "other type": header({"x": entry([8], [0, 8], "F8_E4M3")}, b"\0" * 8),
    "type of nothing": header({"x": entry([8], [0, 8], ["F32"])}, b"\0" * 8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_safetensors_that_claim_too_much_are_refused(tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    refused(safetensors_file.load, path, "not a readable safetensors file: .*; get the file again")


# What costs most of the headers that are read at all: about a list in eight bytes, or more.
MOST = safetensors_file.HEADER
FILLED = {
    "only lists": b"[" + b"[]," * (MOST // 3 - 1) + b"0]",
    "lists": b"[" + b"[12345], " * (MOST // 9 - 1) + b"0]",
    "dicts": b"[" + b'{"":12}, ' * (MOST // 9 - 9) + b"0]",
    "names": json.dumps({f"{i:x}": [] for i in range(140_000)}).encode(),
    "digits": b"[0." + b"1" * (MOST - 9) + b"]",
}


@pytest.mark.parametrize("name", FILLED)
def test_headers_of_the_largest_size_cost_little(tmp_path, name):
    text = FILLED[name]
    assert MOST * 0.8 < len(text) <= MOST
    path = tmp_path / "w.safetensors"
    path.write_bytes(header(text))
    refused(
        safetensors_file.load,
        path,
        "no JSON object|has no place|little else than lists",
        peak=2**26,
    )


def test_headers_of_more_arrays_than_any_network_has_are_read(tmp_path):
    names = [
        f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q.weight" for i in range(8000)
    ]
    save_file({name: np.full((1, 1), 7, np.uint8) for name in names}, tmp_path / "w.safetensors")
    assert sorted(safetensors_file.names(tmp_path / "w.safetensors")) == sorted(names)
