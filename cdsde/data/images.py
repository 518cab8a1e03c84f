"""Pictures: decode, resize, convert, write. Uses NumPy and Pillow only (folders.py lists them).

Stored images are uint8 `[H, W, 3]` in RGB, 0 to 255; networks use float32 in [-1, 1]. Only
`to_float` and `to_uint8` convert between the two.
"""

import functools
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from cdsde.data import colour_profiles
from cdsde.runtime.files import write_bytes

# Pillow starts Ghostscript for EPS, and knows the others by name only.
NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class BrokenImage(ValueError):
    """An image file that is missing, empty, truncated or not an image; the message is a sentence.

    Attributes:
      problem: the sentence without its advice.
    """

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}: {advice}")
        self.problem, self._advice = problem, advice

    def __reduce__(self):
        # It travels from a worker, and Python would call the class with the message alone.
        return type(self), (self.problem, self._advice)


class TooLargeImage(BrokenImage):
    """An image that has more pixels than are read."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that `decode` reads."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_READ)


@functools.cache
def extensions() -> frozenset[str]:
    """Endings of the files that `decode` reads: ".png", ".jpg", …."""
    known = formats()
    return frozenset(e for e, name in Image.registered_extensions().items() if name in known)


def decode(
    data: bytes | str | os.PathLike, name: str | None = None, max_pixels: int | None = None
) -> np.ndarray:
    """Decodes one image file to RGB in sRGB.

    Transparent pixels are blended with white, the EXIF rotation and the colour profile are applied,
    and an animation gives its first frame. 16-bit grey is scaled to 8 bits. 32-bit integer and
    float images do not store their range, so it is inferred from the values (`_grey_to_uint8`).

    Args:
      data: the file's bytes, or its path.
      name: name of the image in error messages; default: the path.
      max_pixels: the most pixels that are read; None: Pillow's bound, twice
        `Image.MAX_IMAGE_PIXELS`.

    Returns:
      uint8 `[H, W, 3]`.

    Raises:
      TooLargeImage: the image has too many pixels; none is decoded.
      BrokenImage: the file is missing, empty, truncated or not an image; a ValueError.
    """
    is_bytes = isinstance(data, bytes | bytearray | memoryview)
    name = name or ("<bytes>" if is_bytes else os.fspath(data))
    try:
        with Image.open(io.BytesIO(data) if is_bytes else data, formats=formats()) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise TooLargeImage(
                    f"Image '{name}' has {image.width} x {image.height} pixels, more than the "
                    f"{max_pixels:,} that are read",
                    "make it smaller first.",
                )
            return _to_rgb(image, name)
    except TooLargeImage:
        raise
    except Image.DecompressionBombError:
        raise TooLargeImage(
            f"Image '{name}' has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the most "
            "that are read",
            "make it smaller first.",
        ) from None
    except FileNotFoundError:
        raise BrokenImage(f"Image file '{name}' does not exist", "check the path.") from None
    # Pillow's readers raise nearly any type on broken bytes (SyntaxError, struct.error, ...).
    except Exception as error:
        raise BrokenImage(
            f"Image '{name}' cannot be decoded ({type(error).__name__}: {error})",
            "replace the file by a whole picture, such as a PNG or a JPEG, or remove it.",
        ) from error


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Converts an opened Pillow image to uint8 `[H, W, 3]`."""
    image.load()
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _grey_to_uint8(np.asarray(image), sixteen=image.mode.startswith("I;16"))
        image = Image.fromarray(grey)
    if profile:
        image = colour_profiles.to_srgb(image, profile, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _grey_to_uint8(values: np.ndarray, sixteen: bool) -> np.ndarray:
    """Converts a grey image of more than 8 bits, `[H, W]`, to uint8.

    A 16-bit file has the range 0 to 65535. Other files get the smallest of 0 to 1 (float only), 0
    to 255 and 0 to 65535 that contains all values, or else the minimum and maximum of the values.
    """
    values64 = values.astype(np.float64)
    if not np.isfinite(values64).all():
        raise ValueError("the float image holds NaN or infinite values")
    low, high = values64.min(), values64.max()
    is_float = values.dtype.kind == "f"
    ranges = (65535.0,) if sixteen else (1.0, 255.0, 65535.0) if is_float else (255.0, 65535.0)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    unit = (values64 - low) / (high - low) if top is None else values64 / top
    return np.floor(unit * 255 + 0.5).astype(np.uint8)


def resize(image: np.ndarray, size: int, filter: str = "lanczos", fit: str = "crop") -> np.ndarray:
    """Resizes an image to a square.

    Args:
      image: uint8 `[H, W, 3]`.
      size: side of the square in pixels.
      filter: "lanczos", "bicubic" or "bilinear"; each is antialiased when it reduces the size.
      fit: "crop" resizes the shorter side to `size` and cuts out the centre; "stretch" resizes both
        sides, as CUT does; "pad" resizes the longer side and mirrors the picture at its borders
        (`Reading.inside` is where it lies).

    Returns:
      uint8 `[size, size, 3]`; the same array where nothing changes.

    Raises:
      ValueError: the image is not uint8 `[H, W, 3]`, the filter is unknown, or the size is below 1.
    """
    if filter not in FILTERS:
        raise ValueError(f"Resize filter '{filter}' is not known: use one of {', '.join(FILTERS)}.")
    if size < 1:
        raise ValueError(f"Image size {size} is not positive: use 1 or more.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"Resize takes uint8 [H, W, 3], not {image.dtype} {list(image.shape)}: "
            "decode or convert the image first."
        )
    height, width = image.shape[:2]
    if fit == "stretch":
        if (height, width) == (size, size):
            return image
        return np.array(Image.fromarray(image).resize((size, size), FILTERS[filter]))
    if fit == "pad":
        rows, columns = _inside(height, width, size)
        inner = rows.stop - rows.start, columns.stop - columns.start
        if (height, width) != inner:
            image = np.array(Image.fromarray(image).resize(inner[::-1], FILTERS[filter]))
        borders = [(part.start, size - part.stop) for part in (rows, columns)]
        return np.pad(image, (*borders, (0, 0)), "symmetric")
    short = min(height, width)
    if short != size:
        # The longer side is rounded down, as in torchvision's Resize.
        new_width, new_height = width * size // short, height * size // short
        image = np.array(Image.fromarray(image).resize((new_width, new_height), FILTERS[filter]))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _inside(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of a square of `size` in which "pad" puts an image of this size."""
    long = max(height, width)
    inner = [max(1, (side * size + long // 2) // long) for side in (height, width)]
    rows, columns = (slice((size - n) // 2, (size - n) // 2 + n) for n in inner)
    return rows, columns


class Reading(NamedTuple):
    """Resizing of images to the networks' size: `reading(uint8 [H, W, 3]) -> uint8 [S, S, 3]`.

    Attributes:
      size: S.
      filter, fit: arguments of `resize`.
    """

    size: int
    filter: str = "lanczos"
    fit: str = "crop"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Applies `resize` to an image."""
        return resize(image, self.size, filter=self.filter, fit=self.fit)

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the result that show the image: all of them, but for pad."""
        if self.fit == "pad":
            return _inside(height, width, self.size)
        return slice(0, self.size), slice(0, self.size)


def to_float(image):
    """x / 127.5 - 1: uint8 `[..., H, W, C]` → float32 in [-1, 1]; NumPy or JAX arrays.

    Raises:
      ValueError: the array is not uint8.
    """
    if image.dtype != np.uint8:
        raise ValueError(
            f"to_float takes uint8, not {image.dtype}: the image is converted already."
        )
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """⌊clip((y + 1) / 2, 0, 1) · 255 + 0.5⌋: float `[..., H, W, C]` in [-1, 1] → uint8.

    The published code converts in the same way.

    Raises:
      ValueError: the array is not float, or contains NaN.
    """
    image = np.asarray(image)
    if image.dtype.kind in "biu":
        raise ValueError(f"to_uint8 takes float in [-1, 1], not {image.dtype}: pass it unchanged.")
    image = image.astype(np.float32)
    if np.isnan(image).any():
        raise ValueError(
            f"The image {list(image.shape)} holds NaN: lower the guidance weights or check the "
            "weights of the network."
        )
    return (np.clip((image + 1) / 2, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def write_png(path: str | os.PathLike, image: np.ndarray, **told: str) -> None:
    """Writes an image as PNG: uint8, or float in [-1, 1], `[H, W, 3]`. Creates the folder.

    The write is atomic: a killed run leaves no incomplete image. The texts `told` are stored in the
    file under their names, for `told_by`.

    Raises:
      ValueError: the image is not `[H, W, 3]`.
      OSError: the file cannot be written.
    """
    path, image = Path(path), np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"'{path}' needs an image [H, W, 3], not {list(image.shape)}: pass one.")
    image = image if image.dtype == np.uint8 else to_uint8(image)
    texts, data = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in told.items():
        texts.add_text(name, text)
    Image.fromarray(image).save(data, format="PNG", pnginfo=texts)
    write_bytes(path, data.getvalue())


def told_by_whole(path: str | os.PathLike) -> dict[str, str] | None:
    """What `told_by` gives, if the whole file can be decoded; None if it was cut short."""
    try:
        decode(path)
    except BrokenImage:
        return None
    return told_by(path)


def told_by(path: str | os.PathLike) -> dict[str, str] | None:
    """The texts that `write_png` stored in a file, without decoding it; None for a broken file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {name: text for name, text in image.info.items() if isinstance(text, str)}
    except Exception:  # as in `decode`: Pillow raises nearly any type on broken bytes
        return None
