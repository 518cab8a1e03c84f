import hashlib
import importlib.resources
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cdsde import data
from cdsde.data import images, sources
from cdsde.data.tfds import TfdsSource

ASSETS = importlib.resources.files("cdsde") / "assets"


def colour(number: int) -> np.ndarray:
    return np.full((6, 8, 3), number, np.uint8)


def png(pixels: np.ndarray) -> io.BytesIO:
    """An encoded image: TFDS encodes arrays by TensorFlow only."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


@pytest.fixture
def tree(tmp_path):
    for split, domain, names in [
        ("train", "cats", ["b.png", "a 1.png", "ñ.png"]),
        ("train", "dogs", ["a.png"]),
        ("test", "cats", ["t.png"]),
    ]:
        for number, name in enumerate(names):
            images.write_png(tmp_path / split / domain / name, colour(number))
    return tmp_path


# --- embedded data ---


def test_counts():
    for name, styles, counts in (
        ("emoji", ("twemoji", "noto", "fluent"), [1315, 69, 149]),
        ("glyphs", ("gothic", "mincho", "brush"), [1968, 150, 300]),
    ):
        for style in styles:
            found = [len(data.open_domain(name, style, split)) for split in sources.SPLITS]
            assert found == counts


def test_emoji_files_are_those_of_the_data_card():
    card = (ASSETS / "emoji" / "README.md").read_text(encoding="utf-8")
    for name in ("emoji64.zip", "metadata.csv", "LICENSES.txt"):
        digest = hashlib.sha256((ASSETS / "emoji" / name).read_bytes()).hexdigest()
        assert f"`{digest}`" in card, name
    assert "CC BY 4.0" in card


def test_glyphs_come_with_their_licences():
    card = (ASSETS / "glyphs" / "README.md").read_text(encoding="utf-8")
    for name in ("OFL-NotoCJK.txt", "OFL-Yuji.txt"):
        assert name in card
        assert "SIL OPEN FONT LICENSE" in (ASSETS / "glyphs" / name).read_text().upper()


@pytest.mark.parametrize(("name", "style"), [("emoji", "fluent"), ("glyphs", "mincho")])
def test_items_and_pickle(name, style):
    source = data.open_domain(name, style, "val")
    item = source[3]
    assert item["image"].shape == (64, 64, 3) and item["image"].dtype == np.uint8
    assert item["id"] == source.ids[3] and source.ids == sorted(source.ids)
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 100_000
    np.testing.assert_array_equal(copy[3]["image"], item["image"])
    assert style in repr(source) and str(len(source)) in repr(source)
    assert source.caption(3).startswith(f"{style} ")


def test_an_emoji_has_captions_of_its_colour_and_keywords():
    source = data.open_domain("emoji", "twemoji", "train")
    j = source.ids.index("1f34e")
    several = source.captions(j)
    assert several[0] == several[1] == source.caption(j) == "twemoji red apple"
    tomato = source.captions(source.ids.index("1f345"))
    assert tomato[:2] == ["twemoji tomato", "twemoji red tomato"]
    assert several == source.captions(j), "the same in every run"
    words = {word for text in several for word in text.split()}
    assert {"red", "fruit"} <= words and all(text.startswith("twemoji ") for text in several)
    assert len(data.open_domain("glyphs", "mincho", "train").captions(0)) == 1
    for split in ("train", "val", "test"):
        people = data.open_domain("emoji", "twemoji", split)
        for n in range(len(people)):  # CLDR calls some pictures of women "man", too
            name = people.caption(n).split()
            assert all({"man", "woman"} & set(c.split()) <= set(name) for c in people.captions(n))
    wanted = data.captions(source, [j], lambda text: "fruit" in text)
    assert "fruit" in wanted[0] and data.captions(source, [j]) == [several[0]]


def test_pixels_have_the_statistics_of_the_data_cards():
    source = data.open_domain("emoji", "noto", "train")
    pixels = np.stack([source[j]["image"] for j in range(0, len(source), 3)]) / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), [0.839, 0.793, 0.724], atol=0.01)
    source = data.open_domain("glyphs", "gothic", "test")
    ink = {row["code"]: float(row["ink"]) for row in data.metadata("glyphs")
           if (row["style"], row["split"]) == ("gothic", "test")}  # fmt: skip
    for j in range(0, 300, 60):
        darkness = 1 - source[j]["image"].mean() / 255
        assert darkness == pytest.approx(ink[source.ids[j]], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "styles"), [("emoji", ("twemoji", "fluent")), ("glyphs", ("gothic", "mincho"))]
)
def test_embedded_pairs(name, styles):
    source = data.open_domain(name, styles[0], "test")
    pairs = data.open_pairs(name, *styles, "test")
    assert source.ids == pairs.ids and len(pairs) == len(source)
    # A pair is nearer than a wrong pair, for most images.
    x = np.stack([source[j]["image"] for j in range(40)]) / 255
    y = np.stack([pairs[j]["image"] for j in range(40)]) / 255
    distance = ((x[:, None] - y[None]) ** 2).mean((2, 3, 4))
    assert (np.diag(distance) < np.median(distance, axis=1)).mean() > 0.9


def test_training_sets_of_glyphs_have_no_pairs():
    assert data.open_pairs("glyphs", "gothic", "mincho", "train") is None
    gothic = data.open_domain("glyphs", "gothic", "train").ids
    assert not set(gothic) & set(data.open_domain("glyphs", "mincho", "train").ids)


def test_metadata():
    rows = data.metadata("emoji")
    assert len(rows) == 4599
    assert {"name", "category", "code", "group"} <= set(rows[0])
    rows[0]["name"] = "changed"
    assert data.metadata("emoji")[0]["name"] != "changed"
    assert {"character", "ink"} <= set(data.metadata("glyphs")[0])


def test_embedded_errors():
    with pytest.raises(ValueError, match="no domain 'flent': use one of fluent, noto, twemoji"):
        data.open_domain("emoji", "flent", "train")
    with pytest.raises(ValueError, match="glyphs data have no split 'valid': use one of train"):
        data.open_domain("glyphs", "gothic", "valid")


# --- folders ---


def test_folder(tree):
    source = data.open_domain(tree, "cats", "train")
    assert source.ids == ["a 1.png", "b.png", "ñ.png"] and len(source) == 3
    assert source[1]["id"] == "b.png"
    np.testing.assert_array_equal(source[1]["image"], colour(0))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[2]["image"], colour(2))
    assert "FolderSource" in repr(source) and "3 images" in repr(source)
    assert data.open_pairs(tree, "cats", "dogs", "train") is None


def test_pairs_of_a_folder_by_name(tmp_path):
    for domain, names in (("in", ("b.png", "a.png")), ("out", ("x.png", "a.webp", "b.png"))):
        for number, name in enumerate(names):
            images.write_png(tmp_path / "test" / domain / name, colour(10 * number))
    pairs = data.open_pairs(tmp_path, "in", "out", "test", by_name=True)
    assert pairs.ids == ["a.webp", "b.png"]
    np.testing.assert_array_equal(pairs[1]["image"], colour(20))
    message = "1 of 3 images of test/out have no image of the same name in test/in.*'x'"
    with pytest.raises(ValueError, match=message):
        data.open_pairs(tmp_path, "out", "in", "test", by_name=True)
    with pytest.raises(ValueError, match="needs files with names"):
        data.open_pairs("tfds:cycle_gan/horse2zebra", "horse", "zebra", "test", by_name=True)


def test_folder_errors(tree):
    with pytest.raises(
        ValueError, match=r"nope' does not exist: give 'emoji', 'glyphs', 'tfds:NAME'"
    ):
        data.open_domain(tree / "nope", "cats", "train")
    with pytest.raises(ValueError, match=r"no split 'val' \(there are: test, train\): make"):
        data.open_domain(tree, "cats", "val")
    with pytest.raises(ValueError, match="no domain 'dog': use one of dogs, cats, or make"):
        data.open_domain(tree, "dog", "train")
    (tree / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' holds no image"):
        data.open_domain(tree, "empty", "train")
    with pytest.raises(ValueError, match="root '.*' is a file"):
        data.open_domain(tree / "train" / "dogs" / "a.png", "cats", "train")


def test_broken_image_is_named(tree):
    (tree / "train" / "dogs" / "z.png").write_bytes(b"")
    source = data.open_domain(tree, "dogs", "train")
    with pytest.raises(ValueError, match=r"dogs/z\.png' cannot be decoded"):
        source[1]


def test_files(tree):
    folder = data.FilesSource(tree / "train" / "cats")
    assert folder.ids == ["a 1.png", "b.png", "ñ.png"]
    one = data.FilesSource(str(tree / "train" / "cats" / "ñ.png"))
    assert one.ids == ["ñ.png"] and len(one) == 1
    np.testing.assert_array_equal(one[0]["image"], colour(2))
    with pytest.raises(ValueError, match=r"nope' does not exist: give an image file or a folder"):
        data.FilesSource(tree / "nope")


def test_image_id_is_stable():
    # CRC-32's published check value; the id must not change between versions of the program.
    assert data.image_id("123456789") == 0xCBF43926
    assert data.image_id("ñ 猫.png") != data.image_id("n.png")
    codes = data.open_domain("emoji", "noto", "train").ids
    assert len({data.image_id(code) for code in codes}) == len(codes)


# --- TFDS ---


class ToyTwo(tfds.core.GeneratorBasedBuilder):
    """Two domains as splits, as in cycle_gan; images of all kinds."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="horse2zebra", description="toy"),
        tfds.core.BuilderConfig(name="plain", description="toy"),
    ]

    def _info(self):
        features = {"picture": tfds.features.Image(shape=(None, None, 3)), "number": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        sizes = {"trainA": 5, "trainB": 3, "testA": 2, "testB": 1}
        starts = {"trainA": 0, "trainB": 100, "testA": 50, "testB": 150}
        return {split: self._generate_examples(starts[split], sizes[split]) for split in sizes}

    def _generate_examples(self, start, count):
        for n in range(start, start + count):
            yield n, {"picture": png(colour(n)), "number": n}


class ToyClasses(tfds.core.GeneratorBasedBuilder):
    """Two domains as classes, with names of files and a val split by TFDS's name."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 4)),
            "file_name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for n in range(count):
            pixels = np.dstack([colour(n), np.full((6, 8), 255 * (n > 1), np.uint8)])
            yield n, {"image": png(pixels), "file_name": f"ü {n}.png", "label": n % 2}


class ToyOffline(ToyClasses):
    """A data set whose download fails."""

    def _split_generators(self, dl_manager):
        raise OSError("no route to host\n" + "more " * 1000)


class ToyText(ToyClasses):
    """A data set without images."""

    def _info(self):
        features = tfds.features.FeaturesDict({"words": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": iter([(0, {"words": "none"})])}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """An empty folder: the first source of each data set prepares it."""
    return tmp_path_factory.mktemp("tfds")


def test_tfds_domains_as_splits(tfds_dir):
    source = TfdsSource("toy_two/horse2zebra", "A", "train", tfds_dir)
    assert source.ids == [f"trainA-{n:06d}" for n in range(5)]
    values = {int(source[j]["image"][0, 0, 0]) for j in range(len(source))}
    assert values == {0, 1, 2, 3, 4}
    assert source[4]["id"] == "trainA-000004" and source[4]["image"].shape == (6, 8, 3)
    zebra = TfdsSource("toy_two/horse2zebra", "zebra", "test", tfds_dir)
    assert zebra.ids == ["testB-000000"] and zebra[0]["image"][0, 0].tolist() == [150] * 3
    horse = TfdsSource("toy_two/horse2zebra", "horse", "test", tfds_dir)
    assert len(horse) == 2 and "2 images" in repr(horse)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["image"], source[2]["image"])


def test_tfds_domains_as_classes(tfds_dir):
    dogs = TfdsSource("toy_classes", "dog", "train", tfds_dir)
    assert sorted(dogs.ids) == ["ü 1.png", "ü 3.png", "ü 5.png"]
    for j, name in enumerate(dogs.ids):
        item = dogs[j]
        number = int(name[2])
        assert item["id"] == name
        # Transparent pixels come over white: the package's own decoder is at work.
        assert item["image"][0, 0].tolist() == [number if number > 1 else 255] * 3
    assert len(TfdsSource("toy_classes", "cat", "val", tfds_dir)) == 2


def test_tfds_needs_no_builder_class_in_another_process(tfds_dir):
    source = TfdsSource("toy_classes", "cat", "train", tfds_dir)
    source.ids  # noqa: B018 -- read before, so that the copy has them
    code = (
        "import pickle, sys; s = pickle.load(sys.stdin.buffer); print(s[0]['id'] == s.ids[0]);"
        "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True
    )
    assert done.stdout.split() == [b"True", b"False", b"False"]


def test_tfds_by_name(tfds_dir, monkeypatch):
    TfdsSource("toy_two/horse2zebra", "A", "train", tfds_dir)
    prepared = tfds.builder("toy_two/horse2zebra", data_dir=tfds_dir)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: prepared)
    assert len(data.open_domain("tfds:toy_two/horse2zebra", "zebra", "train")) == 3
    assert data.open_pairs("tfds:toy_two/horse2zebra", "horse", "zebra", "test") is None


def test_tfds_errors(tfds_dir):
    with pytest.raises(ValueError, match=r"domain 'C' in split 'train'.*trainA.*testB.*none"):
        TfdsSource("toy_two/horse2zebra", "C", "train", tfds_dir)
    with pytest.raises(ValueError, match=r"'horse' in split 'train'.*its splits are .*trainA"):
        TfdsSource("toy_two/plain", "horse", "train", tfds_dir)
    with pytest.raises(ValueError, match=r"'dg' in split 'train'.*train.*classes dog, cat"):
        TfdsSource("toy_classes", "dg", "train", tfds_dir)
    with pytest.raises(ValueError, match=r"'toy_nothing' is not known \(Dataset toy_nothing not f"):
        TfdsSource("toy_nothing", "A", "train", tfds_dir)
    with pytest.raises(ValueError, match=r"'toy_two/other' is not known"):
        TfdsSource("toy_two/other", "A", "train", tfds_dir)
    with pytest.raises(ValueError, match=r"no image among its features \(words\)"):
        TfdsSource("toy_text", "A", "train", tfds_dir)


def test_tfds_download_that_fails(tfds_dir):
    with pytest.raises(ValueError, match=r"cannot be prepared.*no route to host more") as caught:
        TfdsSource("toy_offline", "cat", "train", tfds_dir)
    assert len(str(caught.value)) < 1000
    assert f"data_dir='{tfds_dir}'" in str(caught.value)
    assert "download_and_prepare(file_format='array_record')" in str(caught.value)


def test_tfds_in_another_format(tmp_path):
    TfdsSource("toy_classes", "cat", "train", tmp_path)
    (info,) = tmp_path.glob("toy_classes/*/dataset_info.json")
    fields = json.loads(info.read_text())
    info.write_text(json.dumps({**fields, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="as tfrecord, which only TensorFlow reads: remove that"):
        TfdsSource("toy_classes", "cat", "train", tmp_path)


# --- import ---


def test_import_is_cheap():
    code = (
        "import sys, cdsde.data; a = set(sys.modules); from cdsde.data import images, sources\n"
        "cdsde.data.open_domain('emoji', 'noto', 'val')[0]\n"
        "heavy = ['tensorflow', 'torch', 'jax', 'grain', 'tensorflow_datasets']\n"
        "print([m for m in heavy if m in sys.modules], 'PIL' in a)\n"
        "cdsde.data.train_iterator, cdsde.data.TfdsSource\n"
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["[] False", "[]"]


def test_public_names():
    for name in data.__all__:
        assert getattr(data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        data.nothing  # noqa: B018
