"""`--mode=sample`: one file for each input, going on after a stop, mistakes."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import FOLDER, files, one_sentence, random_params, read_json
from sampling_helpers import MADE, assert_same_pictures, picture, results

from cdsde import api, load_config, load_sampler
from cdsde import config as config_lib
from cdsde.data import FilesSource, image_id, inputs, resize
from cdsde.runtime import mesh, records
from cdsde.translation import run as translation_run
from cdsde.translation.compiled import Sampler
from cdsde.weights import checkpoint, resolve

pytestmark = pytest.mark.usefixtures("compile_quickly")


# --- one file for each input ---


def test_every_input_becomes_one_file_whatever_the_batch(task, five, tmp_path):
    runs = {}
    for size in (2, 5, 64):
        config = task(sample__input=five, sample__output=tmp_path / f"{size}")
        config.sample.batch_size = size
        folder = translation_run.sample(config, tmp_path / "work")
        assert folder == tmp_path / f"{size}"
        assert sorted(files(folder)) == sorted([*MADE, "settings.json", "sheet.png"])
        runs[size] = results(folder)
        assert {image.shape for image in runs[size].values()} == {(16, 16, 3)}
    assert_same_pictures(runs[2], runs[5], levels=1)
    assert_same_pictures(runs[64], runs[5])
    assert len({image.tobytes() for image in runs[5].values()}) == 5
    source, sampler = FilesSource(five), load_sampler(config, ".")[0]
    for j, name in enumerate(records.output_names(source.ids)):
        ids = np.array([image_id(source.ids[j])], np.uint32)
        alone = sampler(resize(source[j]["image"], 16)[None], ids)[0]
        np.testing.assert_allclose(alone, runs[5][name], atol=1)


def test_one_file_is_an_input_too(task, five, tmp_path):
    together = results(translation_run.sample(task(sample__input=five), tmp_path / "all"))
    config = task(sample__input=five / "ç 1.png", sample__sheet=0)
    folder = translation_run.sample(config, tmp_path / "one")
    assert folder == tmp_path / "one" / "samples" / "sdedit"
    assert sorted(files(folder)) == ["settings.json", "ç 1.png"]
    np.testing.assert_allclose(results(folder)["ç 1.png"], together["ç 1.png"], atol=1)


def test_the_split_of_the_source_is_the_input_unless_given(task, tmp_path):
    folder = translation_run.sample(task(), tmp_path)
    assert set(results(folder)) == {"0.png", "1.png", "2.png"}
    # Two sources with the same names.
    config = task("ilvr", data__source="blue, yellow", data__domains=("blue", "yellow"))
    config.sample.limit = 5
    folder = translation_run.sample(config, tmp_path)
    assert folder == tmp_path / "samples" / "ilvr"
    names = [*(f"blue_{n}.png" for n in range(3)), "yellow_0.png", "yellow_1.png"]
    assert sorted(results(folder)) == names


NAMES = [
    (["a.png", "b.jpg", "c d.webp"], ["a.png", "b.png", "c d.png"]),
    (["a.jpg", "a.png", "b.png"], ["a.jpg.png", "a.png.png", "b.png"]),
    (["1f600", "2764"], ["1f600.png", "2764.png"]),
    (["cats/1.png", "dogs/1.png"], ["cats_1.png", "dogs_1.png"]),
    (["sheet.jpg", "a.png"], ["sheet.jpg.png", "a.png"]),
    (["v1.2.png", "v1.3.png"], ["v1.2.png", "v1.3.png"]),
    (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png", "a.png.png", "a.jpg.png.png"]),
]


@pytest.mark.parametrize("ids, names", NAMES, ids=lambda x: ",".join(x))
def test_names_of_results(ids, names):
    assert records.output_names(ids) == names
    assert len({*names, "sheet.png"}) == len(ids) + 1


def test_names_that_meet_are_kept_apart(task, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(["a.png", "a.jpg", "sheet.png"]):
        picture(number).save(folder / name)
    out = translation_run.sample(task(sample__input=folder), tmp_path)
    assert {p.name for p in out.glob("*.png")} == {
        "a.png.png", "a.jpg.png", "sheet.png.png", "sheet.png",
    }  # fmt: skip


def test_the_sheet_shows_sources_results_and_true_targets(task, tmp_path, monkeypatch):
    shown = []
    real = translation_run.contact_sheet

    def contact_sheet(rows, titles, **options):
        shown.append((rows, titles))
        return real(rows, titles, **options)

    monkeypatch.setattr(translation_run, "contact_sheet", contact_sheet)
    emoji = {"data__root": "emoji", "data__source": "noto", "data__target": "fluent"}
    config = task(sample__limit=3, sample__sheet=2, sample__split="test", **emoji)
    made = list(results(translation_run.sample(config, tmp_path)).values())
    ((rows, titles),) = shown
    assert titles == ["source", "SDEdit", "true target"] and len(rows) == 2
    truth = inputs.open_truth(config)
    for j, (_, result, target) in enumerate(rows):
        np.testing.assert_array_equal(result, made[j])
        np.testing.assert_array_equal(target, resize(truth[j]["image"], 16))
    config = task(sample__sheet=1)
    translation_run.sample(config, tmp_path / "folder")
    (row,), titles = shown[1]
    assert titles == ["source", "SDEdit"] and len(row) == 2


def test_the_record_says_what_decided_the_pixels(task, five, tmp_path):
    config = task(sample__input=five, sample__seed=5)
    record = read_json(translation_run.sample(config, tmp_path) / "settings.json")
    assert record["method"] == "sdedit" and record["start"] == config.sdedit.start
    assert record["sample"]["seed"] == 5 and record["sample"]["steps"] == 2
    assert set(record["weights"]) == {"score"} and "sha256" in record["weights"]["score"]
    assert str(five) in record["input"]


# --- stopped and gone on with ---


def test_only_what_is_missing_is_made_again(task, five, tmp_path):
    config = task(sample__input=five)
    folder = translation_run.sample(config, tmp_path)
    before, expected = files(folder), results(folder)
    for name in ("b.png", "e.png"):
        (folder / name).unlink()
    translation_run.sample(config, tmp_path)
    assert_same_pictures(results(folder), expected, levels=1)
    untouched = set(MADE) - {"b.png", "e.png"}
    assert {n: t for n, t in files(folder).items() if n in untouched} == {
        n: before[n] for n in untouched
    }


def test_a_finished_run_is_left_as_it_is(task, five, tmp_path, monkeypatch):
    config = task(sample__input=five)
    folder = translation_run.sample(config, tmp_path)
    before = files(folder)
    monkeypatch.setattr(Sampler, "states", None)  # whoever calls it fails
    translation_run.sample(config, tmp_path)
    after = files(folder)
    assert {n for n in after if after[n] != before[n]} == {"sheet.png"}


class Stopped(BaseException):
    """What nothing on the way catches."""


def test_a_run_that_was_stopped_keeps_what_was_finished(task, five, tmp_path, monkeypatch):
    config = task(sample__input=five, sample__batch_size=2)
    real, calls = Sampler.begin, []

    def fails_at_the_second(self, *arguments, **more):
        calls.append(len(arguments[0]))
        if len(calls) == 2:
            raise Stopped
        return real(self, *arguments, **more)

    with monkeypatch.context() as m:
        m.setattr(Sampler, "begin", fails_at_the_second)
        with pytest.raises(Stopped):
            translation_run.sample(config, tmp_path)
        folder = records.output_folder(config, tmp_path)
        finished = files(folder)
        assert sorted(finished) == ["a.png", "b.png", "settings.json"]
        translation_run.sample(config, tmp_path)
    assert calls == [2, 2, 2, 2], "three images are left, in two batches of one size"
    assert {n: files(folder)[n] for n in finished} == finished
    whole = translation_run.sample(config, tmp_path / "whole")
    assert_same_pictures(results(folder), results(whole))


def test_more_images_of_a_finished_run_are_added(task, five, tmp_path):
    config = task(sample__input=five, sample__limit=2)
    folder = translation_run.sample(config, tmp_path)
    before = files(folder)
    assert set(results(folder)) == {"a.png", "b.png"}
    config.sample.update(limit=4, batch_size=3, sheet=1)
    translation_run.sample(config, tmp_path)
    assert len(results(folder)) == 4
    shutil.copy(five / "a.png", five / "later.png")
    config = task(sample__input=five)
    translation_run.sample(config, tmp_path)
    assert set(results(folder)) == {*MADE, "later.png"}
    assert all(files(folder)[n] == before[n] for n in ("a.png", "b.png", "settings.json"))


class Negative:
    """What a sampler does, without a network: each picture becomes its negative."""

    evaluations = 1

    def __init__(self):
        self.devices = mesh.make_mesh(jax.local_devices()[:1])

    def begin(self, images, ids, keep=0):
        return lambda: (np.float32(1) - np.asarray(images, np.float32) / 127.5, None)


def test_a_result_that_was_cut_short_is_made_again(tiny, five, tmp_path):
    config, loaded = tiny(method="sdedit", sample__input=five), (Negative(), {})
    folder = translation_run.sample(config, tmp_path, loaded)
    made, before = results(folder), files(folder)
    for name, part in (("a.png", 0.6), ("b.png", 0)):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(part * len(data))])
    translation_run.sample(config, tmp_path, loaded)
    assert_same_pictures(results(folder), made)
    assert all(files(folder)[n] == before[n] for n in ("d.png", "e.png", "ç 1.png"))


def test_a_picture_that_broke_after_a_run_is_listed(tiny, five, tmp_path):
    config, loaded = tiny(method="sdedit", sample__input=five), (Negative(), {})
    folder = translation_run.sample(config, tmp_path, loaded)
    (five / "a.png").write_bytes(b"")
    wanted = (
        r"^1 of 5 images have no result, the others are done: .*a\.png' .*; replace the file by"
    )
    for _ in range(2):
        said(wanted, translation_run.sample, config, tmp_path, loaded)
    assert (folder / "sheet.png").exists()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_results_do_not_go_among_the_images(suffix, tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(0).save(folder / f"a{suffix}")
    for output in (folder, tmp_path / "." / "in" / ".." / "in"):
        config = tiny(method="sdedit", sample__input=folder, sample__output=output)
        said("in', from which the images are read, so that", translation_run.sample, config, "no")
    config = tiny(method="sdedit")
    config.sample.output = f"{config.data.root}/val/blue"
    said("blue', from which the images are read", translation_run.sample, config, "no")
    assert list(files(folder)) == [f"a{suffix}"]


def test_a_picture_replaced_under_its_name_is_translated_again(task, five, tmp_path):
    config = task(sample__input=five)
    folder = translation_run.sample(config, tmp_path)
    before, old = files(folder), results(folder)
    picture(77, (30, 30)).save(five / "b.jpg")
    translation_run.sample(config, tmp_path)
    assert {n for n, t in files(folder).items() if t != before[n]} == {"b.png", "sheet.png"}
    fresh = results(translation_run.sample(config, tmp_path / "fresh"))
    assert_same_pictures(results(folder), fresh, levels=1)
    assert (fresh["b.png"] != old["b.png"]).any()
    # A result that is no picture any more is made again, too.
    (folder / "a.png").write_bytes(b"")
    translation_run.sample(config, tmp_path)
    assert_same_pictures(results(folder), fresh, levels=1)


def test_a_picture_of_a_domain_is_known_by_its_content(task, pictures, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(pictures, root)
    names = {"data__root": root, "data__source": "blue, yellow"}
    config = task(**names, data__domains=("blue", "yellow"))
    folder = translation_run.sample(config, tmp_path)
    before = files(folder)
    picture(77).save(root / "val" / "yellow" / "1.png")
    config.sample.sheet = 0
    translation_run.sample(config, tmp_path)
    assert {n for n, t in files(folder).items() if t != before[n]} == {"yellow_1.png"}


CHANGES = [
    ({"sample.seed": 1}, "sample.seed was 0 and is 1"),
    ({"sample.steps": 3}, "sample.steps was 2 and is 3"),
    ({"sample.start": 400}, "sample.start was None and is 400, start was 500 and is 400"),
    ({"sdedit.start": 400}, "sdedit.start was 500 and is 400, start was 500 and is 400"),
    ({"sample.keep_size": True}, "sample.keep_size was False and is True"),
    ({"sde.schedule": "cosine"}, "sde"),
    ({"data.filter": "bicubic"}, "data.filter was lanczos and is bicubic"),
    ({"data.fit": "pad"}, "data.fit was crop and is pad"),
    ({"method": "ilvr"}, "ilvr, method was sdedit and is ilvr, sdedit, start was 500 and is 1000"),
    ({"weights.score": "others"}, "weights.score was .* and is .*"),
    ({"sample.input": "elsewhere"}, "input was .*five pictures.* and is .*elsewhere.*"),
]


@pytest.mark.parametrize("changes, named", CHANGES, ids=lambda x: str(x))
def test_results_of_other_settings_are_not_mixed(changes, named, task, trained, five, tmp_path):
    out = tmp_path / "out"
    config = task(sample__input=five, sample__output=out)
    records.claim(out, records.settings_record(config, origins(config), FilesSource(five)), MADE)
    picture(0).save(out / "a.png")
    before = files(out)
    config.update_from_flattened_dict(changes)
    if "sde.schedule" in changes:  # which weights are made for
        config.weights.score = None
        folder = tmp_path / "checkpoints" / "score"
        checkpoint.save_imported(tmp_path, "score", random_params(config, "score"), {})
        assert folder.exists()
        named = "sde.schedule was linear and is cosine, weights.score was .* and is .*"
    if "weights.score" in changes:
        config.weights.score = trained(config, "score", seed=1)
    if "sample.input" in changes:
        shutil.copytree(five, tmp_path / "elsewhere")
        config.sample.input = str(tmp_path / "elsewhere")
    expected = rf"out holds results made with other settings \(different: {named}\); delete it or "
    with pytest.raises(ValueError, match=expected) as error:
        translation_run.sample(config, tmp_path)
    assert one_sentence(str(error.value)) and files(out) == before


def origins(config):
    stages = config_lib.needed_stages(config)
    return {stage: resolve.load(config, "nowhere", stage)[1] for stage in stages}


# --- mistakes, one sentence each ---


def said(expected: str, call, *arguments, **options):
    with pytest.raises(ValueError, match=expected) as error:
        call(*arguments, **options)
    assert one_sentence(str(error.value))


def test_inputs_that_are_not_there(task, tmp_path):
    (tmp_path / "empty").mkdir()
    said("no/such' does not exist: give an image file or a folder", translation_run.sample,
         task(sample__input="no/such"), tmp_path)  # fmt: skip
    said("empty' holds no image: put png", translation_run.sample,
         task(sample__input=tmp_path / "empty"), tmp_path)  # fmt: skip
    said("has no split 'test' .*there are: train, val", translation_run.sample,
         task(sample__split="test"), tmp_path)  # fmt: skip
    said("has no domain 'blu': use one of blue", translation_run.sample,
         task(data__source="blu"), tmp_path)  # fmt: skip
    said("Data root 'no' does not exist: give 'emoji'", translation_run.sample,
         task(data__root="no"), tmp_path)  # fmt: skip
    said("got no image: give at least one", api.translate, task(), [])
    said("put the one you have in a list", api.translate, task(), "face.png")
    said("got 2 images and 1 names: give one an image", api.translate, task(),
         np.zeros((2, 16, 16, 3), np.uint8), names=["a"])  # fmt: skip
    said("gone.png' does not exist: check the path", api.translate, task(), ["gone.png"])
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("size", [1, 2, 16])
def test_broken_images_are_listed_once_the_others_are_translated(task, five, tmp_path, size):
    (five / "d.webp").write_bytes((five / "d.webp").read_bytes()[:40])
    (five / "a.png").write_bytes(b"")
    config = task(sample__input=five, sample__batch_size=size)
    said(
        r"^2 of 5 images have no result, the others are done: .*a\.png' cannot be decoded .*; "
        r".*d\.webp' cannot be decoded .*; replace the file by",
        translation_run.sample,
        config,
        tmp_path,
    )
    folder = records.output_folder(config, tmp_path)
    assert set(results(folder)) == set(MADE) - {"a.png", "d.png"}
    assert (folder / "sheet.png").exists()
    for name in ("a.png", "d.webp"):
        (five / name).unlink()
    translation_run.sample(config, tmp_path)
    assert set(results(folder)) == set(MADE) - {"a.png", "d.png"}


def test_where_every_image_is_broken_there_is_no_result(task, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    said(
        "1 of 1 images have no result", translation_run.sample, task(sample__input=folder), tmp_path
    )
    assert sorted(files(tmp_path / "samples" / "sdedit")) == ["settings.json"]


def test_weights_that_are_not_there_or_do_not_fit(task, tiny, five, tmp_path):
    said("sdedit needs a trained score network, and there is none in .*checkpoints/score: train it "
         "with --mode=train --config.train.stage=score", translation_run.sample,
         tiny(method="sdedit"), tmp_path)  # fmt: skip
    config = task("egsde")
    config.weights.classifier = None
    said("egsde needs a trained classifier network", translation_run.sample, config, tmp_path)
    config = task()
    config.weights.score = "no/such.safetensors"
    said(
        "weights.score=no/such.safetensors does not exist", translation_run.sample, config, tmp_path
    )
    config.weights.score = "shipped:none"
    said("shipped:none: the package has no such weights; there are .*score-fluent-64",
         translation_run.sample, config, tmp_path)  # fmt: skip
    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    config.weights.score = str(tmp_path / "other.safetensors")
    said("no card other.json beside it", translation_run.sample, config, tmp_path)
    config = task()
    config.score.channels = 64
    said(
        "config.score.channels is 64, the weights have 32", translation_run.sample, config, tmp_path
    )
    assert not (tmp_path / "samples").exists()


def test_a_method_that_is_not_there():
    said("config.method is 'gan'; choose one of contrastive_sde, egsde, sddm, ",
         load_config, FOLDER, {"method": "gan"})  # fmt: skip


def test_pictures_of_others_are_not_taken_for_results(task, five, tmp_path):
    # Such as another folder of pictures: what is there already would never be translated.
    more = shutil.copytree(five, tmp_path / "more pictures")
    before = files(more)
    config = task(sample__input=five, sample__output=more)
    said(
        "more pictures holds a.png, which is no result of", translation_run.sample, config, tmp_path
    )
    assert files(more) == before
    # Files of other names do no harm.
    out = tmp_path / "out"
    out.mkdir()
    picture(0).save(out / "mine.png")
    config.sample.output = str(out)
    translation_run.sample(config, tmp_path)
    assert set(results(out)) == {*MADE, "mine.png"}


def test_results_of_one_label_do_not_pass_for_those_of_another(tiny, tmp_path):
    records_of = [
        records.settings_record(tiny(method="sdedit", **changes), {}, "pictures")
        for changes in ({}, {"score__label": 3}, {"score__label": 3, "score__guidance": 4.0})
    ]
    assert "score" not in records_of[0]
    for other, words in ((1, "score.label was None and is 3"), (2, "score.guidance was 1.0 and")):
        with pytest.raises(ValueError, match=words):
            records.refuse_others(tmp_path, records_of[0], records_of[other], "take another")


def test_results_of_a_published_network_are_known_by_what_its_file_says(tiny, tmp_path):
    """Its parameters may stay while its prediction or its noise is corrected."""
    told = []
    for text in (None, '{"path": 1}', '{"path": 2}'):
        config = tiny(method="sdedit")
        config.score.published = text
        told.append(records.settings_record(config, {}, "pictures"))
    assert "score" not in told[0]
    with pytest.raises(ValueError, match=r"score.published was \w{12} and is \w{12}"):
        records.refuse_others(tmp_path, told[1], told[2], "take another")
