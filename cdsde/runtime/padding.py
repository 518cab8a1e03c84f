"""Padding of the last batch: another size would be another program to compile."""

from __future__ import annotations

from typing import Any

import numpy as np


def pad(rows, size: int) -> Any:
    """An array `[n, ...]`, or a tuple of them, with the last row repeated up to `[size, ...]`.

    n must be 1 … size.
    """
    if isinstance(rows, tuple):
        return tuple(pad(array, size) for array in rows)
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
