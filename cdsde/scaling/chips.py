"""Published rates of TPU chips (cloud.google.com/tpu/docs/v5e)."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of chip.

    Attributes:
      name: prefix of topology names, as in `v5e:2x4`.
      flops: bfloat16 FLOP/s.
      bandwidth: memory bandwidth, bytes/s.
      links: bandwidth to its neighbours, all links together, bytes/s.
      memory: bytes.
      shapes: `{number of chips: shape of the slice}`.
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
