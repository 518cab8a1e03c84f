"""What a TPU chip can do, from Google's public pages (cloud.google.com/tpu/docs/v5e)."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of chip.

    Attributes:
      name: as topologies are named, `v5e:2x4`.
      flops: bfloat16 multiplications and additions a second.
      bandwidth: bytes a second from its memory.
      links: bytes a second to its neighbours, all links together.
      memory: bytes.
      shapes: the slice for a number of chips.
    """

    name: str
    flops: float
    bandwidth: float
    links: float
    memory: int
    shapes: dict[int, str]


V5E = Chip(
    name="v5e",
    flops=197e12,
    bandwidth=819e9,
    links=200e9,
    memory=16 * 2**30,
    shapes={4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
)
