"""Counts the collectives of compiled programs and the bytes that they move."""

from __future__ import annotations

import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
# Not `-done`, the second half of an asynchronous collective, which would count it twice.
_LINE = re.compile(r"= (?P<result>.*?) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """`{kind: (number, bytes of the results on one device)}` of a compiled module's text.

    A collective inside a loop counts once, as do all costs of a loop.
    """
    number, size = Counter(), Counter()
    for line in text.splitlines():
        if match := _LINE.search(line):
            kind = match["kind"]
            shapes = [_size(*shape) for shape in _SHAPE.findall(match["result"])]
            number[kind] += 1
            # The result of an asynchronous collective includes its operands; the largest shape is
            # the data that arrives.
            size[kind] += max(shapes, default=0) if match["start"] else sum(shapes)
    return {kind: (number[kind], size[kind]) for kind in KINDS if number[kind]}


def _size(dtype: str, dimensions: str) -> int:
    return _BYTES[dtype] * math.prod(int(n) for n in dimensions.split(",") if n)
