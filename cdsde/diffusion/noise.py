"""The random numbers of a translation: one stream per image, or recorded arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Noise(NamedTuple):
    """The source of random numbers; each function returns `[B, H, W, C]` ~ N(0, I).

    A `position` counts the steps of a round from 0; i is the index of the noise level.

    Attributes:
      start: `(round) -> e`, the noise of the start and of the energies' references.
      step: `(round, position, i) -> z`, the noise of a solver's step.
      reference: `(round, position, i) -> z`, the noise of a freshly perturbed source (ILVR).
    """

    start: Callable
    step: Callable
    reference: Callable


def of_images(key, ids, shape, corners=None) -> Noise:
    """Noise that depends only on seed, image id, round, level and position in the image.

    A result is therefore independent of the order, size and padding of its batch, and of the number
    of devices. Tiles of one image have the same noise where they overlap.

    Args:
      key: typed JAX key of the sampling seed.
      ids: stable ids of the images, uint32 `[B]`.
      shape: `(H, W, C)`.
      corners: row and column of the first pixel of each tile in its image, int32 `[B, 2]`; None:
        whole images, whose noise is that of the tile at (0, 0).
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def draw(*path):
        def one(k, corner=None):
            for number in path:
                k = jax.random.fold_in(k, number)
            return jax.random.normal(k, shape) if corner is None else _window(k, corner, shape)

        return jax.vmap(one)(keys) if corners is None else jax.vmap(one)(keys, corners)

    return Noise(
        start=lambda r: draw(r, 0),
        step=lambda r, position, i: draw(r, 1, i),
        reference=lambda r, position, i: draw(r, 2, i),
    )


def _window(key, corner, shape) -> jax.Array:
    """The part of an endless field of noise with its first pixel at `corner`, `shape`.

    The field is made of blocks of this shape, each with a key of its own; that of (0, 0) is `key`.
    """
    height, width, channels = shape
    row, column = corner[0] // height, corner[1] // width

    def block(r, c):
        own = jax.random.fold_in(jax.random.fold_in(key, r), c)
        return jax.random.normal(jnp.where((r == 0) & (c == 0), key, own), shape)

    four = [jnp.concatenate([block(row + r, column + c) for c in (0, 1)], 1) for r in (0, 1)]
    start = corner[0] - row * height, corner[1] - column * width, 0
    return jax.lax.dynamic_slice(jnp.concatenate(four), start, (height, width, channels))


def replay(start, step, reference=None) -> Noise:
    """Recorded noise, to reproduce a run of other code.

    Args:
      start: e of each round, `[K, B, H, W, C]`.
      step: z of each round and step, `[K, S, B, H, W, C]`, first step first.
      reference: like `step`, for ILVR; other methods do not use it.
    """
    start, step = jnp.asarray(start), jnp.asarray(step)
    reference = step if reference is None else jnp.asarray(reference)
    return Noise(
        start=lambda r: start[r],
        step=lambda r, position, i: step[r, position],
        reference=lambda r, position, i: reference[r, position],
    )
