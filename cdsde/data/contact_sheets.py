"""Contact sheets: grids of images with column titles, to compare results side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    scale: int | None = None,
    blocks: int = 1,
) -> np.ndarray:
    """Arranges images in a grid with a title above each column.

    Args:
      rows: rows with one image per column, uint8 `[H, W, 3]`; None leaves a cell empty.
      columns: the titles.
      scale: integer factor of enlargement, which repeats pixels to keep small images sharp; None
        enlarges the largest image to about 128 pixels.
      blocks: number of blocks of rows, placed side by side, so that a sheet fits a screen.

    Returns:
      The sheet, uint8 `[H, W, 3]`, on white.

    Raises:
      ValueError: the number of images in a row is not the number of columns, or there is no image.
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"Row {number} of the sheet has {len(row)} images for {len(columns)} column "
                "titles: give one image (or None) a column."
            )
    if blocks > 1:
        rows, columns = _side_by_side(rows, columns, blocks)
    present = [image for row in rows for image in row if image is not None]
    if not present:
        raise ValueError("The contact sheet has no image: give at least one.")
    side = max(max(image.shape[:2]) for image in present)
    scale = scale or max(1, round(128 / side))
    cell = side * scale
    font = ImageFont.load_default(size=max(13, min(20, cell // 8)))
    gap, text_height = 6, round(font.size * 1.6)
    # A column without a title only separates blocks.
    widths = [max(cell, round(font.getlength(t)) + 4) if t else cell // 4 for t in columns]
    sheet = Image.new(
        "RGB",
        (gap + sum(widths) + gap * len(widths), text_height + (cell + gap) * len(rows) + gap),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    starts = [gap + sum(widths[:n]) + gap * n for n in range(len(widths))]
    for start, width, title in zip(starts, widths, columns, strict=True):
        draw.text((start + width / 2, text_height / 2), title, "black", font, anchor="mm")
    for number, row in enumerate(rows):
        top = text_height + (cell + gap) * number
        for start, width, image in zip(starts, widths, row, strict=True):
            if image is not None:
                large = Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1))
                sheet.paste(
                    large, (start + (width - large.width) // 2, top + (cell - large.height) // 2)
                )
    return np.array(sheet)


def _side_by_side(rows, columns, blocks: int):
    """Places `blocks` blocks of rows side by side, with an empty column between them."""
    height = -(-len(rows) // blocks)
    parts = [list(rows[start : start + height]) for start in range(0, len(rows), height)]
    empty = [None] * len(columns)
    parts = [part + [empty] * (height - len(part)) for part in parts]
    wide = [sum(([*part[n], None] for part in parts), [])[:-1] for n in range(height)]
    return wide, (([*columns, ""]) * len(parts))[:-1]
