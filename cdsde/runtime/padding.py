"""Padding of the last batch: a smaller batch would need another compiled program."""

from __future__ import annotations

from typing import Any

import numpy as np


def pad(rows, size: int) -> Any:
    """Pads an array `[n, ...]`, or a tuple of them, to `[size, ...]` by repeating the last row.

    n must be 1 … size.
    """
    if isinstance(rows, tuple):
        return tuple(pad(array, size) for array in rows)
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
