"""Pictures, and the results of a run."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cdsde.data import decode, image_id, resize


def picture(number: int, size=(20, 18)) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize(size)


MADE = ["a.png", "b.png", "d.png", "e.png", "ç 1.png"]


def results(folder) -> dict[str, np.ndarray]:
    """The pictures of a run by name, without its contact sheet."""
    return {p.name: decode(p) for p in sorted(Path(folder).glob("*.png")) if p.name != "sheet.png"}


def assert_same_pictures(a, b, levels: int = 0):
    assert set(a) == set(b)
    for name in a:
        difference = np.abs(a[name].astype(int) - b[name].astype(int))
        assert difference.max() <= levels, name


@cache
def batch(size: int = 16):
    pixels = [resize(np.array(picture(n)), size) for n in range(5)]
    return np.stack(pixels), np.array([image_id(f"{n}.png") for n in range(5)], np.uint32)
