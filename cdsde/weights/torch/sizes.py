"""Sizes that a file claims, before anything is computed from them.

Python's whole numbers have no end, and a product of long ones can take minutes.
"""

from __future__ import annotations

from typing import Any, TypeGuard

AXES = 16  # of an array; PyTorch's kernels have 5
LARGEST = 2**63 - 1  # what PyTorch and NumPy count with


def plausible(numbers: Any) -> TypeGuard[list[int] | tuple[int, ...]]:
    """Whether these are the axes or strides of an array: a list of a few numbers, none negative."""
    return (
        isinstance(numbers, list | tuple)
        and len(numbers) <= AXES
        and all(type(n) is int and 0 <= n <= LARGEST for n in numbers)
    )
