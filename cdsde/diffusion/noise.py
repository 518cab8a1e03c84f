"""The random numbers of a translation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Noise(NamedTuple):
    """Where random numbers come from; each function returns `[B, H, W, C]` ~ N(0, I).

    Attributes:
      start: `(round) -> e`.
      step: `(round, position, i) -> z`, fresh at each step.
      reference: `(round, position, i) -> z` of a freshly perturbed source (ILVR).
    """

    start: Callable
    step: Callable
    reference: Callable


def of_images(key, ids, shape) -> Noise:
    """Noise that belongs to the image: a function of seed, image id, round and level alone.

    So no result depends on the batch's order, size or padding, or on the number of devices.

    Args:
      key: typed key of the sampling seed.
      ids: uint32 `[B]`, stable ids of the images.
      shape: `(H, W, C)`.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def draw(*path):
        def one(k):
            for number in path:
                k = jax.random.fold_in(k, number)
            return jax.random.normal(k, shape)

        return jax.vmap(one)(keys)

    return Noise(
        start=lambda r: draw(r, 0),
        step=lambda r, position, i: draw(r, 1, i),
        reference=lambda r, position, i: draw(r, 2, i),
    )


def replay(start, step, reference=None) -> Noise:
    """Noise drawn beforehand, to replay a run of other code.

    Args:
      start: `[K, B, H, W, C]`, e of each round.
      step: `[K, S, B, H, W, C]`, z of each round and step, first step first.
      reference: like `step`, for ILVR; may be None otherwise.
    """
    start, step = jnp.asarray(start), jnp.asarray(step)
    reference = step if reference is None else jnp.asarray(reference)
    return Noise(
        start=lambda r: start[r],
        step=lambda r, position, i: step[r, position],
        reference=lambda r, position, i: reference[r, position],
    )
