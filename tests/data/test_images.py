import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image

from cdsde.data import contact_sheet, images


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def raw_png(values: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG of any colour type; Pillow writes only grey ones."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# --- decode ---


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_rgb_is_unchanged(form):
    pixels = noise(5, 7, 3)
    options = {"lossless": True} if form == "WEBP" else {}
    result = images.decode(encode(Image.fromarray(pixels), form, **options), "a")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels)


def test_decode_takes_a_path_in_any_script(tmp_path):
    pixels = noise(4, 4, 3)
    path = tmp_path / "señal 猫 (1).PNG"
    path.write_bytes(encode(Image.fromarray(pixels)))
    np.testing.assert_array_equal(images.decode(path), pixels)
    np.testing.assert_array_equal(images.decode(str(path)), pixels)


def test_grey_is_repeated():
    grey = noise(4, 6)
    result = images.decode(encode(Image.fromarray(grey)), "a")
    np.testing.assert_array_equal(result, np.stack([grey] * 3, axis=-1))


def test_one_bit():
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert images.decode(encode(bits), "a")[0, :, 0].tolist() == [0, 255]


def test_transparency_is_laid_over_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    expected = [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    assert images.decode(encode(Image.fromarray(rgba)), "a")[0].tolist() == expected
    grey_alpha = Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA")
    assert images.decode(encode(grey_alpha), "a")[0].tolist() == [[9] * 3, [255] * 3]


def test_palette_with_transparency():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([200, 10, 20, 1, 2, 3])
    assert images.decode(encode(image), "a")[0].tolist() == [[200, 10, 20], [1, 2, 3]]
    clear = encode(image, transparency=0)
    assert images.decode(clear, "a")[0].tolist() == [[255, 255, 255], [1, 2, 3]]


def test_colour_marked_as_transparent():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    data = encode(image, transparency=(1, 2, 3))
    assert images.decode(data, "a")[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535, 128]], np.uint16)
    expected = [0, 1, 128, 255, 0]
    data = encode(Image.fromarray(values))
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    assert images.decode(data, "a")[0, :, 0].tolist() == expected
    # A dark image stays dark: the range is the file's, not the values'.
    assert images.decode(encode(Image.fromarray(np.full((2, 2), 200, np.uint16))), "a").max() == 1


def test_sixteen_bit_colour():
    values = np.full((2, 2, 3), (0, 128 * 257, 65535))
    assert images.decode(raw_png(values, colour=2), "a")[0, 0].tolist() == [0, 128, 255]
    with_alpha = np.array([[[128 * 257, 65535], [0, 0]]])
    assert images.decode(raw_png(with_alpha, colour=4), "a")[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 50000, 100000]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 99.6, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
    ],
)
def test_integer_and_float_images(values, expected):
    result = images.decode(encode(Image.fromarray(values), "TIFF"), "a")
    assert result.shape == (1, 3, 3)
    assert result[0, :, 1].tolist() == expected


def test_float_image_with_nan_is_an_error():
    data = encode(Image.fromarray(np.array([[np.nan, 1]], np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"'a\.tif' cannot be decoded .*NaN or infinite"):
        images.decode(data, "a.tif")


def test_cmyk_jpeg():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    result = images.decode(encode(cmyk, "JPEG", quality=100), "a")
    np.testing.assert_allclose(result[8, 8], [255, 0, 0], atol=6)


def test_exif_rotation_is_applied():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    result = images.decode(encode(Image.fromarray(pixels), "JPEG", exif=exif, quality=100), "a")
    assert result.shape == (32, 16, 3)
    assert result[4, 8].min() > 240 and result[28, 8].max() < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert images.decode(data, "a").min() == 255


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_file_is_an_error(form):
    data = encode(Image.fromarray(noise(40, 40, 3)), form)
    with pytest.raises(ValueError, match=r"Image 'x\.img' cannot be decoded \(.*replace the file"):
        images.decode(data[: len(data) // 2], "x.img")


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_an_error(tmp_path, content):
    path = tmp_path / "no image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no image\.png' cannot be decoded"):
        images.decode(path)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.png' does not exist: check the path"):
        images.decode(tmp_path / "nothing.png")


# --- resize ---


def test_resize_scales_the_shorter_side_and_crops_the_centre():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    assert images.resize(image, 10).shape == (10, 10, 3)
    assert images.resize(image, 10).min() > 200
    assert images.resize(image, 40).shape == (40, 40, 3)
    assert images.resize(noise(7, 11, 3), 4).shape == (4, 4, 3)


def test_resize_leaves_an_image_of_that_size_alone():
    image = noise(8, 8, 3)
    np.testing.assert_array_equal(images.resize(image, 8), image)
    wide = noise(8, 12, 3)
    np.testing.assert_array_equal(images.resize(wide, 8), wide[:, 2:10])


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear"])
def test_every_filter_averages_when_it_scales_down(name):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    result = images.resize(stripes, 8, filter=name)
    np.testing.assert_allclose(result, 127, atol=9)


def test_resize_errors():
    with pytest.raises(ValueError, match="filter 'nearest' is not known: use one of lanczos, bic"):
        images.resize(noise(8, 8, 3), 4, filter="nearest")
    with pytest.raises(ValueError, match="Image size 0 is not positive"):
        images.resize(noise(8, 8, 3), 0)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], not float32 \[8, 8, 3\]"):
        images.resize(np.zeros((8, 8, 3), np.float32), 4)
    with pytest.raises(ValueError, match=r"not uint8 \[8, 8\]"):
        images.resize(noise(8, 8), 4)


# --- conversion ---


def test_uint8_and_float_round_trip_over_all_values():
    levels = np.arange(256, dtype=np.uint8).reshape(2, 4, 32, 1)
    floats = images.to_float(levels)
    assert floats.dtype == np.float32 and floats.shape == levels.shape
    assert floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(images.to_uint8(floats), levels)


def test_to_uint8_rounds_and_clips():
    values = np.array([-7.0, -1.0, 0.0, 1.0, 9.0, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1])
    assert images.to_uint8(values).tolist() == [0, 0, 128, 255, 255, 100, 101]


def test_conversion_errors():
    with pytest.raises(ValueError, match="to_float takes uint8, not float32"):
        images.to_float(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"to_uint8 takes float in \[-1, 1\], not uint8"):
        images.to_uint8(noise(2, 2, 3))
    with pytest.raises(ValueError, match=r"\[2, 2, 3\] holds NaN"):
        images.to_uint8(np.full((2, 2, 3), np.nan))


# --- write ---


def test_write_png_round_trip(tmp_path):
    pixels, path = noise(6, 5, 3), tmp_path / "new folder" / "é ü.png"
    images.write_png(path, pixels)
    np.testing.assert_array_equal(images.decode(path), pixels)
    images.write_png(path, images.to_float(255 - pixels))
    np.testing.assert_array_equal(images.decode(path), 255 - pixels)
    assert os.listdir(path.parent) == [path.name]


def test_write_png_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, pixels = tmp_path / "a.png", noise(6, 5, 3)
    images.write_png(path, pixels)

    def broken_write(self, content):
        with self.open("wb") as f:
            f.write(content[:9])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", broken_write)
    with pytest.raises(OSError, match="disk full"):
        images.write_png(path, 255 - pixels)
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(images.decode(path), pixels)


def test_write_png_that_is_stopped_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path, pixels = tmp_path / "a.png", noise(6, 5, 3)
    images.write_png(path, pixels)

    def stopped(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        images.write_png(path, 255 - pixels)
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(images.decode(path), pixels)


def test_write_png_from_several_threads(tmp_path):
    pixels, path = noise(32, 32, 3), tmp_path / "a.png"
    threads = [threading.Thread(target=images.write_png, args=(path, pixels)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a.png"]


def test_write_png_checks_the_shape(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png' needs an image \[H, W, 3\], not \[1, 4, 4, 3\]"):
        images.write_png(tmp_path / "a.png", noise(1, 4, 4, 3))


# --- contact sheet ---


def test_contact_sheet_enlarges_and_labels():
    red = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    sheet = contact_sheet([[red, None], [red, red]], ["source", "result"])
    assert sheet.dtype == np.uint8 and sheet.shape[-1] == 3
    is_red = (sheet == (255, 0, 0)).all(axis=-1)
    assert is_red.sum() == 3 * 128 * 128
    # Titles stand over the images, with visible ink.
    top = int(np.argwhere(is_red)[:, 0].min())
    assert (sheet[:top] < 100).any()


def test_contact_sheet_scale_and_size():
    image = noise(200, 150, 3)
    alone = contact_sheet([[image]], ["a title that is wider than its image" * 2])
    assert alone.shape[0] > 200 and alone.shape[1] > 400
    assert contact_sheet([[image]], ["x"], scale=2).shape[0] > 400


def test_contact_sheet_errors():
    image = noise(4, 4, 3)
    with pytest.raises(ValueError, match="Row 1 of the sheet has 1 images for 2 column titles"):
        contact_sheet([[image, image], [image]], ["a", "b"])
    with pytest.raises(ValueError, match="no image"):
        contact_sheet([[None]], ["a"])


# --- list ---


def test_list_images_sorts_and_warns_of_the_rest(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    for name in ("b.JPG", "a b.png", "ü.WebP", "c.jpeg", "d.bmp"):
        (tmp_path / name).write_bytes(b"")
    assert len(images.list_images(tmp_path)) == 5
    assert not said
    for name in ("notes.txt", "._b.jpg", ".DS_Store", "x.gif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = images.list_images(str(tmp_path))
    assert [path.name for path in found] == ["a b.png", "b.JPG", "c.jpeg", "d.bmp", "ü.WebP"]
    assert len(said) == 1
    for part in ("4 files", ".DS_Store", "ignored", ", ..."):
        assert part in said[0]


def test_list_images_errors(tmp_path):
    with pytest.raises(ValueError, match="missing' does not exist: give a folder with png, jpg"):
        images.list_images(tmp_path / "missing")
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no image: put png.*other files: 1"):
        images.list_images(tmp_path)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        images.list_images(tmp_path / "a.txt")
