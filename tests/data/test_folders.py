"""What a folder of pictures says of itself."""

import os

import numpy as np
import pytest
from absl import logging
from PIL import Image

from cdsde.data import FilesSource, folders


@pytest.fixture
def said(monkeypatch):
    texts = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: texts.append(text % values))
    return texts


def test_pictures_are_sorted_and_the_rest_is_counted_by_kind(tmp_path, said):
    for name in ("b.JPG", "a b.png", "ü.WebP", "c.jpeg", "d.bmp", "x.gif"):
        (tmp_path / name).write_bytes(b"")
    names = ["a b.png", "b.JPG", "c.jpeg", "d.bmp", "x.gif", "ü.WebP"]
    assert [path.name for path in folders.list_images(str(tmp_path))] == names and not said
    for name in ("1.txt", "2.TXT", "3.txt", "._b.jpg", ".DS_Store", "README", "video.mp4"):
        (tmp_path / name).write_bytes(b"")
    for name in ("folder.png", "more", "others", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "b.JPG")
    (tmp_path / "lost.png").symlink_to(tmp_path / "gone.png")
    found = folders.list_images(tmp_path)
    assert [path.name for path in found] == [*names[:-2], "link.png", *names[-2:]]
    (text,) = said
    # What looks like a picture is named first, however much else lies there.
    assert "7 images; left out: 1 folder named like a picture (folder.png), " in text
    parts = ("1 broken link (lost.png)", "3 .txt files (1.txt, ...)", "2 others")
    for part in (*parts, "2 hidden files (.DS_Store, ...)", "2 sub-folders (more, ...)"):
        assert part in text
    assert "\n" not in text


def test_every_format_that_pillow_opens_is_taken(tmp_path, said):
    pixels = np.full((20, 18, 3), (250, 10, 120), np.uint8)
    forms = ("png", "apng", "jpg", "jpeg", "jfif", "webp", "bmp", "gif", "tif", "tiff", "avif",
             "ico", "jp2", "tga", "ppm", "pcx", "qoi", "psd")  # fmt: skip
    for form in forms:
        if form != "psd":  # Pillow reads it, and does not write it
            Image.fromarray(pixels).save(tmp_path / f"a.{form}")
    source = FilesSource(tmp_path)
    assert source.ids == sorted(f"a.{form}" for form in forms if form != "psd") and not said
    for j in range(len(source)):
        image = source[j]["image"]
        assert image.ndim == 3 and np.abs(image.mean((0, 1)) - pixels[0, 0]).max() < 90, source.ids[
            j
        ]
    assert ".psd" in folders.extensions()


def test_what_is_no_folder_of_pictures(tmp_path):
    with pytest.raises(ValueError, match="missing' does not exist: give a folder with png, jpg"):
        folders.list_images(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"holds no image: put png.*\(there is: nothing\)"):
        folders.list_images(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "cats").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(
        ValueError, match=r"holds no image: put png.*1 \.txt file \(a\.txt\)"
    ) as error:
        folders.list_images(tmp_path)
    assert "1 sub-folder (cats)" in str(error.value) and "1 special file" in str(error.value)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        folders.list_images(tmp_path / "a.txt")
