"""Stand-ins for objects beside tensors that trainers pickle: NumPy's scalars, argparse's records.

Each builds plain data; see `pickle_reader.load`, argument `more`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np


class DType:
    """The dtype of a scalar; its byte order follows as a state."""

    def __init__(self, code: Any, *_: Any):
        if not re.fullmatch(r"[biuf][1248]", str(code)):
            raise ValueError(f"a scalar of the type '{code}' is not a plain number")
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        """Takes the byte order from a dtype's state."""
        self.order = state[1] if state[1] in ("<", ">") else "<"


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, DType):
        raise ValueError("a scalar has no type")
    number = np.dtype(dtype.order + dtype.code)
    if len(data) != number.itemsize:
        raise ValueError("a scalar has another size than its type")
    return np.frombuffer(data, number)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of a scalar, which old protocols store as text."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are stored in the encoding '{encoding}'")
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
