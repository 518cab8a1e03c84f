"""Vectors of published code that are replayed with their own noise (tests/golden/methods)."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
METHODS = FOLDER / "methods"
SETTINGS = json.loads((METHODS / "config.json").read_text())
FLOORS = json.loads((METHODS / "floors.json").read_text())["arrays"]


def arrays_of(name):
    """The arrays of a file; images as NHWC, and everything else as it is."""
    with np.load(METHODS / f"{name}.npz") as arrays:
        return {
            k: np.moveaxis(v, -3, -1) if v.ndim >= 4 and v.shape[-1] >= 16 else v
            for k, v in arrays.items()
        }


def draw(seed, index, shape):
    """The README's noise(seed, index, shape) for images `[B, H, W, C]`."""
    generator = np.random.Generator(np.random.PCG64(seed * 100000 + index))
    b, h, w, c = shape
    return np.moveaxis(generator.standard_normal((b, c, h, w), dtype=np.float32), 1, -1)


def assert_near(actual, expected, name, tolerance="tolerance", largest=None):
    """At a tolerance of the vectors, relative to `largest` (default: that of the whole array)."""
    assert actual.shape == expected.shape, name
    largest = FLOORS[name]["max_abs"] if largest is None else largest
    off = np.abs(np.asarray(actual) - expected).max() / largest
    assert off < FLOORS[name][tolerance], (name, off, FLOORS[name][tolerance])
