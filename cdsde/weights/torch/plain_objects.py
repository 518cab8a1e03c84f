"""Stand-ins for objects beside tensors that trainers pickle: NumPy's scalars, argparse's records.

Each builds plain data; see `pickle_reader.load`, argument `more`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

LONGEST = 64  # characters that stand for the bytes of a scalar; a float has 8


class DType:
    """The dtype of a scalar; its byte order follows as a state."""

    def __init__(self, code: Any, *_: Any):
        # Only text is looked at: lists in lists can take for ever to print.
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise ValueError("a scalar is not a plain number")
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        """Takes the byte order from a dtype's state."""
        self.order = state[1] if state[1] in ("<", ">") else "<"


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, DType) or not isinstance(data, bytes):
        raise ValueError("a scalar has no type or no bytes")
    number = np.dtype(dtype.order + dtype.code)
    if len(data) != number.itemsize:
        raise ValueError("a scalar has another size than its type")
    return np.frombuffer(data, number)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    """The bytes of a scalar, which old protocols store as text."""
    if not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes are stored in another encoding than latin1")
    # A file can mention one long text as often as it likes, and each call makes new bytes.
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError("bytes stored as text are longer than a number")
    return text.encode("latin1")


class Record:
    """An object with attributes and nothing else, `fields`."""

    def __init__(self):
        self.fields: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Takes the attributes."""
        if not isinstance(state, dict):
            raise ValueError("a record has no fields")
        self.fields = state


NUMPY_SCALARS = {
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): DType,
    ("_codecs", "encode"): _encode,
}
RECORDS = {("argparse", "Namespace"): Record}
