"""Image files: decode, resize, convert, write, list a folder. Uses NumPy and Pillow only.

Stored images are uint8 `[H, W, 3]` in RGB, 0 to 255; networks use float32 in [-1, 1]. Only
`to_float` and `to_uint8` convert between the two.
"""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image, ImageOps, PngImagePlugin

from cdsde.runtime.files import write_bytes

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp")
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
        self.problem = problem


def decode(data: bytes | str | os.PathLike, name: str | None = None) -> np.ndarray:
    """Decodes one image file to RGB.

    Transparent pixels are blended with white, the EXIF rotation is applied, and an animation gives
    its first frame. 16-bit grey is scaled to 8 bits. 32-bit integer and float images do not store
    their range, so it is inferred from the values (`_grey_to_uint8`).

    Args:
      data: the file's bytes, or its path.
      name: name of the image in error messages; default: the path.

    Returns:
      uint8 `[H, W, 3]`.

    Raises:
      BrokenImage: the file is missing, empty, truncated or not an image; a ValueError.
    """
    is_bytes = isinstance(data, bytes | bytearray | memoryview)
    name = name or ("<bytes>" if is_bytes else os.fspath(data))
    try:
        with Image.open(io.BytesIO(data) if is_bytes else data) as image:
            return _to_rgb(image)
    except FileNotFoundError:
        raise BrokenImage(f"Image file '{name}' does not exist", "check the path.") from None
    # Pillow's readers raise nearly any type on broken bytes (SyntaxError, struct.error, ...).
    except Exception as error:
        raise BrokenImage(
            f"Image '{name}' cannot be decoded ({type(error).__name__}: {error})",
            "replace the file by a whole PNG, JPEG, WebP or BMP, or remove it.",
        ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Converts an opened Pillow image to uint8 `[H, W, 3]`."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _grey_to_uint8(np.asarray(image), sixteen=image.mode.startswith("I;16"))
        return np.repeat(grey[..., None], 3, axis=-1)
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
        sides, as CUT does.

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
    short = min(height, width)
    if short != size:
        # The longer side is rounded down, as in torchvision's Resize.
        new_width, new_height = width * size // short, height * size // short
        image = np.array(Image.fromarray(image).resize((new_width, new_height), FILTERS[filter]))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


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


def told_by(path: str | os.PathLike) -> dict[str, str] | None:
    """The texts that `write_png` stored in a file, without decoding it; None for a broken file."""
    try:
        with Image.open(path) as image:
            return {name: text for name, text in image.info.items() if isinstance(text, str)}
    except Exception:  # as in `decode`: Pillow raises nearly any type on broken bytes
        return None


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Lists the image files of a folder, sorted by name, without subfolders; warns of other files.

    Raises:
      ValueError: the folder is missing, is a file, or contains no image.
    """
    folder, accepted = Path(folder), ", ".join(EXTENSIONS)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"Image folder '{folder}' {problem}: give a folder with {accepted} files.")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    # Files with a leading dot, such as macOS's "._photo.jpg", are not images.
    images = [
        path
        for path in files
        if path.suffix[1:].lower() in EXTENSIONS and not path.name.startswith(".")
    ]
    if not images:
        raise ValueError(
            f"Folder '{folder}' holds no image: put {accepted} files right into it "
            f"(other files: {len(files)}; subfolders are not searched)."
        )
    if len(images) < len(files):
        ignored = [path.name for path in files if path not in set(images)]
        logging.warning(
            "Folder '%s': %d files are not images (%s) and are ignored: %s%s",
            folder,
            len(ignored),
            accepted,
            ", ".join(ignored[:3]),
            ", ..." * (len(ignored) > 3),
        )
    return images
