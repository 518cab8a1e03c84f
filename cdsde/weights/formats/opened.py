"""What a reader of a file format returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class Opened(NamedTuple):
    """A published network as its file describes it.

    Attributes:
      arch: name of the network's class, a key of `networks.published.ARCHITECTURES`.
      fields: constructor fields, plain JSON values.
      path: how the network sees a noisy image: arguments of `diffusion.paths.Path`, plain JSON
        values.
      params: `{"params": tree}`, float32 arrays.
    """

    arch: str
    fields: dict[str, Any]
    path: dict[str, Any]
    params: dict[str, Any]
