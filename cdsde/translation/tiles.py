"""Translations at a picture's own size (`sample.keep_size`), by tiles that agree.

The picture is cut into overlapping tiles of the networks' size. All tiles take a step of the
reverse SDE, then each pixel gets the mean of the states of its tiles, weighted by the distance to
their borders:

    y(p) ← Σ_k w_k(p) y_k(p) / Σ_k w_k(p)                                                       (1)

before the next step. As noise belongs to the picture's coordinates (`noise.of_images`), the tiles
differ in what their networks predict and in nothing else, so that (1) averages predictions without
averaging noise away. A step needs no more of a method than its tiles: every guided SDE works.

The generators of CUT and FastCUT are convolutional: they take the whole picture at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import to_uint8
from cdsde.runtime import mesh
from cdsde.runtime.padding import pad
from cdsde.translation import compiled

OVERLAP = 2  # neighbouring tiles share at least 1/OVERLAP of their side
HALVINGS = 4  # a generator takes multiples of this


class Layout(NamedTuple):
    """Where the tiles of a picture lie.

    Attributes:
      corners: first row and column of each tile, int32 `[N, 2]`.
      size: side of the tiles.
      shape: height and width of the picture, each at least `size`.
    """

    corners: np.ndarray
    size: int
    shape: tuple[int, int]

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The tiles of a picture `[H, W, C]`: `[N, size, size, C]`."""
        s = self.size
        return np.stack([picture[y : y + s, x : x + s] for y, x in self.corners])

    def joined(self, tiles: np.ndarray) -> np.ndarray:
        """The weighted mean (1) of tiles `[N, size, size, C]`: float32 `[H, W, C]`."""
        s, weight = self.size, _window(self.size)
        total = np.zeros((*self.shape, tiles.shape[-1] + 1), np.float32)
        for (y, x), tile in zip(self.corners, tiles, strict=True):
            total[y : y + s, x : x + s, :-1] += weight * tile
            total[y : y + s, x : x + s, -1:] += weight
        return total[..., :-1] / total[..., -1:]

    def agreed(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles `[N, size, size, C]` after (1)."""
        return self.cut(self.joined(tiles)) if len(tiles) > 1 else tiles


def _window(size: int) -> np.ndarray:
    """The weight w of a tile's pixels, `[size, size, 1]`: it falls linearly to the borders."""
    line = np.minimum(np.arange(size), np.arange(size)[::-1]).astype(np.float32) + 0.5
    return (line[:, None] * line)[..., None]


def layout(height: int, width: int, size: int) -> Layout:
    """Evenly spaced tiles that cover a picture, as few as the overlap allows."""

    def starts(side: int) -> np.ndarray:
        stride = size - size // OVERLAP
        count = 1 + max(0, -(-(side - size) // stride))
        return np.linspace(0, side - size, count).round().astype(np.int32)

    corners = np.stack(np.meshgrid(starts(height), starts(width), indexing="ij"), -1)
    return Layout(corners.reshape(-1, 2), size, (height, width))


def _swapped(steps):
    """Noise of a round's steps `[S, B, ...]` with the images first, and back; None stays None."""
    return None if steps is None else steps.swapaxes(0, 1)


class Whole:
    """A translation of pictures of any size: `(picture uint8 [H, W, 3], id) -> uint8 [H, W, 3]`.

    Args:
      sampler: the networks of the method, on their devices.
      config: the config that the sampler has.
    """

    def __init__(self, sampler: compiled.Sampler, config: ConfigDict):
        self._sampler, self._config = sampler, config
        self._params, self._devices = sampler.params, sampler.devices
        self._batch = mesh.round_up(config.sample.batch_size, self._devices)
        if config.method in config_lib.SDES:
            self._begin, self._step = compiled.step_by_step(config)

    def __call__(
        self, picture: np.ndarray, image_id: int, report: Callable | None = None
    ) -> np.ndarray:
        """Translates one picture; where it is too small for a network, it is mirrored at its end.

        Args:
          picture: uint8 `[H, W, 3]`.
          image_id: its id, from which its noise derives.
          report: called as `report(tiles=N, step=k)` before each step, if given.
        """
        height, width = picture.shape[:2]
        size, is_sde = self._config.data.image_size, self._config.method in config_lib.SDES
        multiple = 1 if is_sde else HALVINGS
        missing = [
            (0, max(size, -(-side // multiple) * multiple) - side) for side in (height, width)
        ]
        padded = np.pad(picture, [*missing, (0, 0)], "symmetric")
        if is_sde:
            result = self._by_tiles(padded, np.uint32(image_id), report)
        else:
            result = self._sampler(padded[None], np.array([image_id], np.uint32))[0]
        return result[:height, :width]

    def _by_tiles(self, picture: np.ndarray, image_id: np.uint32, report) -> np.ndarray:
        """The picture translated by the reverse SDE, uint8 `[H, W, 3]`."""
        height, width = picture.shape[:2]
        places = layout(height, width, self._config.data.image_size)
        images = places.cut(picture)
        ids = np.full(len(images), image_id)
        s = self._config.sample
        numbers, key = compiled.levels(self._config), jax.random.key(s.seed)
        rows = numbers.rows()
        x = np.asarray(compiled.source(self._config, self._params, images))

        def begin(images, ids, x, corners, r):
            args = self._params, images, ids, key, x, r, rows, corners
            carry, drawn = self._begin(*args)
            return carry, drawn._replace(steps=_swapped(drawn.steps))

        def step(images, ids, carry, drawn, corners, row, r):
            drawn = drawn._replace(steps=_swapped(drawn.steps))
            return self._step(self._params, images, ids, key, carry, row, r, drawn, corners)

        def agreed(carry):
            return jax.tree.map(lambda a: places.agreed(a) if a.ndim == 4 else a, carry)

        for r in range(s.rounds):
            of_tile = (images, ids, x, places.corners)
            carry, drawn = self._each(functools.partial(begin, r=r), *of_tile)
            for k in range(len(numbers.grid.index)):
                if report:
                    report(tiles=len(images), step=r * len(numbers.grid.index) + k + 1)
                row = jax.tree.map(lambda column, k=k: column[k], rows)
                of_tile = (images, ids, agreed(carry), drawn, places.corners)
                carry = self._each(functools.partial(step, row=row, r=r), *of_tile)
            x = agreed(carry)[0]
        return to_uint8(places.joined(x))

    def _each(self, function: Callable, *rows):
        """A function of batches, for any number of rows: trees of arrays `[N, ...]`, or scalars."""
        count = len(jax.tree.leaves(rows)[0])
        # Few sizes of batches, for each compiles once.
        size = min(self._batch, mesh.round_up(1 << (count - 1).bit_length(), self._devices))
        results = []
        for start in range(0, count, size):
            part = jax.tree.map(
                lambda a, start=start: pad(a[start : start + size], size) if np.ndim(a) else a, rows
            )
            placed = jax.tree.map(
                lambda a: mesh.put_batch(a, self._devices) if np.ndim(a) else a, part
            )
            results.append(jax.tree.map(np.asarray, function(*placed)))
        return jax.tree.map(
            lambda *parts: np.concatenate(parts)[:count] if np.ndim(parts[0]) else parts[0],
            *results,
        )
