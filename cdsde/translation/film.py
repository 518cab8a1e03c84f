"""Trajectories: the states of one image along the reverse SDE, as a PNG strip and a WebP film."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cdsde.data import contact_sheet, to_uint8, write_png
from cdsde.runtime.files import write_bytes

FOLDER = "trajectories"  # folder within that of the results
FRAMES = 24  # states per round, evenly spaced over its steps
STRIP = 8  # states on the strip
MILLISECONDS = 80  # per frame of the film; the first and last stay longer


def missing(folder: Path, name: str) -> bool:
    """Whether the strip or the film of a result does not exist."""
    return not all((folder / name).with_suffix(s).exists() for s in (".png", ".webp"))


def write(folder: Path, name: str, source: np.ndarray, states: np.ndarray) -> None:
    """Write the strip `folder/NAME.png` (source and states) and the film `folder/NAME.webp`.

    Args:
      folder: created if it does not exist.
      name: file name of the result, NAME.png.
      source: uint8 `[H, W, 3]`.
      states: float32 `[F, H, W, 3]`, about [-1, 1], in order.
    """
    pictures = [to_uint8(state) for state in states]
    chosen = np.unique(np.linspace(0, len(pictures) - 1, STRIP).round().astype(int))
    # Every column has a title: the sheet shows an untitled column as a gap.
    titles = ["source", *(f"{n + 1}/{len(pictures)}" for n in chosen[:-1]), "result"]
    strip = contact_sheet([[source, *(pictures[n] for n in chosen)]], titles)
    write_png(folder / name, strip)
    height, width = source.shape[:2]
    scale = max(1, round(256 / max(height, width)))
    film = [
        Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        for picture in (source, *pictures)
    ]
    data = io.BytesIO()
    film[0].save(
        data,
        format="WEBP",
        save_all=True,
        append_images=film[1:],
        duration=[500, *[MILLISECONDS] * (len(film) - 2), 1500],
        loop=0,
        lossless=max(height, width) <= 64,
        quality=85,
    )
    write_bytes((folder / name).with_suffix(".webp"), data.getvalue())
