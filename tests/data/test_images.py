import io
import os
import pickle
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image, ImageCms

from cdsde.data import contact_sheet, images


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def icc(space: str, gamma: float, order: str = "rgb") -> bytes:
    """A colour profile: grey, or sRGB's primaries in another order, with a power of gamma."""
    primaries = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971),
                 "b": (0.1431, 0.0606, 0.7141)}  # fmt: skip
    white = (0.9642, 1.0, 0.8249)

    def xyz(values):
        return struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    tags = {b"wtpt": b"XYZ " + bytes(4) + xyz(white)}
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        for tag, channel in zip("rgb", order, strict=True):
            tags[tag.encode() + b"XYZ"] = b"XYZ " + bytes(4) + xyz(primaries[channel])
            tags[tag.encode() + b"TRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    header = struct.pack(">I4xI", 132 + 12 * len(tags) + len(body), 0x02100000)
    header += b"mntr" + space.ljust(4).encode() + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += xyz(white)
    return header.ljust(128, bytes(1)) + table + body


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


@pytest.mark.parametrize("kind", [images.BrokenImage, images.TooLargeImage])
def test_what_is_wrong_travels_from_a_worker(kind):
    error = kind("Image 'a.png' is bad", "remove it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == "Image 'a.png' is bad: remove it."
    assert again.problem == error.problem == "Image 'a.png' is bad"


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


# --- colour profiles ---


def test_colours_are_those_of_the_profile_in_srgb():
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 0], [255, 255, 255]]], np.uint8)
    swapped = icc("RGB", 2.2, order="grb")
    expected = [[0, 255, 0], [255, 0, 0], [0, 0, 0], [255, 255, 255]]
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = encode(Image.fromarray(pixels), form, icc_profile=swapped, **options)
        np.testing.assert_allclose(images.decode(data, "a")[0], expected, atol=3)
    # Through a palette, and beneath transparency.
    palette = Image.fromarray(pixels).quantize(4)
    data = encode(palette, icc_profile=swapped)
    np.testing.assert_allclose(images.decode(data, "a")[0], expected, atol=3)
    clear = np.concatenate([pixels, [[[255], [255], [255], [0]]]], -1).astype(np.uint8)
    data = encode(Image.fromarray(clear), icc_profile=swapped)
    np.testing.assert_allclose(images.decode(data, "a")[0], expected, atol=3)


@pytest.mark.parametrize("values", [np.full((2, 2), 128, np.uint8),
                                    np.full((2, 2), 128 * 257, np.uint16)])  # fmt: skip
def test_grey_in_linear_light_becomes_srgb(values):
    image = Image.fromarray(values)
    assert images.decode(encode(image), "a").max() == 128
    linear = images.decode(encode(image, icc_profile=icc("GRAY", 1.0)), "a")
    np.testing.assert_allclose(linear, 188, atol=1)
    transparent = encode(Image.fromarray(np.full((2, 2), 128, np.uint8)).convert("LA"),
                         icc_profile=icc("GRAY", 1.0))  # fmt: skip
    np.testing.assert_allclose(images.decode(transparent, "a"), 188, atol=1)


def test_a_profile_of_srgb_changes_no_value_and_a_broken_one_is_told(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise(40, 30, 3)
    data = encode(Image.fromarray(pixels), icc_profile=srgb)
    np.testing.assert_array_equal(images.decode(data, "a"), pixels)
    grey = encode(Image.fromarray(pixels[..., 0]), icc_profile=srgb)
    np.testing.assert_array_equal(images.decode(grey, "a")[..., 1], pixels[..., 0])
    assert not said
    for wrong in (b"no profile", srgb[:300], icc("GRAY", 1.0)):
        data = encode(Image.fromarray(pixels), icc_profile=wrong)
        np.testing.assert_array_equal(images.decode(data, "a.png"), pixels)
    assert len(said) == 3 and "'a.png' cannot be used" in said[0]


# --- size ---


def test_too_many_pixels_are_told_before_they_are_decoded(monkeypatch):
    data = encode(Image.new("RGB", (300, 200)))
    with pytest.raises(images.TooLargeImage, match=r"'a\.png' has 300 x 200 pixels, more than the "
                       "50,000 that are read: make it smaller first"):  # fmt: skip
        images.decode(data, "a.png", max_pixels=50_000)
    assert images.decode(data, "a.png", max_pixels=60_000).shape == (200, 300, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(ValueError, match=r"'a\.png' has more than 40,000 pixels, .* smaller first"):
        images.decode(data, "a.png")


def test_nothing_that_starts_a_program_is_read():
    figure = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="cannot be decoded .Unidentified"):
        images.decode(figure, "a.eps")
    assert not images.extensions() & {".eps", ".ps", ".mpg", ".h5", ".pdf"}


# --- pad ---


@pytest.mark.parametrize("height, width", [(20, 60), (60, 20), (7, 7), (1, 90), (33, 32)])
def test_pad_shows_the_whole_picture_and_says_where(height, width):
    read = images.Reading(16, fit="pad")
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([255 * y / height, 255 * x / width, 0 * x], -1).astype(np.uint8)
    square = read(ramp)
    assert square.shape == (16, 16, 3)
    rows, columns = read.inside(height, width)
    inner = square[rows, columns]
    assert max(inner.shape[:2]) == 16
    assert (
        inner.shape[0] / inner.shape[1] == pytest.approx(height / width, rel=0.1)
        or 1 in inner.shape
    )
    expected = np.array(Image.fromarray(ramp).resize(inner.shape[1::-1], images.FILTERS["lanczos"]))
    np.testing.assert_array_equal(inner, expected)
    # A result that was cut to it is put back where it was.
    np.testing.assert_array_equal(read(inner), square)
    if rows.start:  # the borders mirror what is beside them
        np.testing.assert_array_equal(square[rows.start - 1], square[rows.start])


def test_every_fit_but_pad_fills_the_square():
    for fit in ("crop", "stretch"):
        square = np.zeros((16, 16))
        assert square[images.Reading(16, fit=fit).inside(20, 60)].shape == (16, 16)
