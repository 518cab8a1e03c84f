"""What a reader of a file format returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Opened(NamedTuple):
    """A published network as its file describes it.

    Attributes:
      arch: name of the network's class, a key of `networks.published.ARCHITECTURES`.
      fields: constructor fields, plain JSON values.
      path: how the network sees a noisy image: arguments of `diffusion.paths.Path`, plain JSON
        values.
      params: `{"params": tree}`, float32 arrays.
      side: side of the images that the file was made for, where the network takes others, too.
      sampler: how its publisher samples from the network, for `weights.sampling`: "clip", the bound
        of predicted images or None; "thresholding", its quantile and largest bound, or None;
        "variance" and "spacing", values of the keys of `sample`; "offset" of the levels; "clean",
        ᾱ after the last step. None where the file does not say.
      channels: channels of the images, where no field tells them.
      unlabelled: whether a network with classes was also trained on images without a label, where
        no field tells it.
    """

    arch: str
    fields: dict[str, Any]
    path: dict[str, Any]
    params: dict[str, Any]
    side: int | None = None
    sampler: Mapping[str, Any] | None = None
    channels: int | None = None
    unlabelled: bool = False
