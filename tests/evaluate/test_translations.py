"""Evaluation: numbers against ones made by hand, what is written, what is refused."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from helpers import one_sentence, quick_extractor, read_json
from PIL import Image
from scipy.signal import convolve2d

from cdsde.data import content, decode, inputs, open_domain, resize, write_png
from cdsde.evaluate import extractors, realism, translations
from cdsde.runtime import records

METRICS = ("L2", "MSE", "PSNR", "SSIM")
COUNT = 5  # emoji that are looked at


# --- the metrics by hand, from pictures of 0 to 255 ---


def by_hand(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    a, b = a.astype(np.float64) / 255, b.astype(np.float64) / 255
    squares = (a - b) ** 2
    mse = squares.sum() / squares.size
    return {
        "L2": squares.sum() ** 0.5,
        "MSE": mse,
        "PSNR": -10 * np.log10(mse + 1e-10),
        "SSIM": np.mean([ssim_by_hand(a[..., c], b[..., c]) for c in range(3)]),
    }


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def mean(x):
        return convolve2d(x, window, "valid")

    covariance = mean(a * b) - mean(a) * mean(b)
    variances = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    return np.mean(
        (2 * mean(a) * mean(b) + 0.01**2) / (mean(a) ** 2 + mean(b) ** 2 + 0.01**2)
        * (2 * covariance + 0.03**2) / (variances + 0.03**2)
    )  # fmt: skip


# --- results that somebody else might have put there ---


@pytest.fixture
def emoji(tiny):
    """`emoji(method, ...)`: noto → fluent at 16², `COUNT` images of val, which have true pairs."""

    def make(method: str = "sdedit", **changes):
        data = {"data__root": "emoji", "data__source": "noto", "data__target": "fluent"}
        rest = {
            "sample__limit": COUNT,
            "sample__split": "val",
            "eval__bootstrap": 200,
            "eval__reference": "",
        }
        return tiny(method=method, **data, **(rest | changes))

    return make


def emoji_pictures(style: str, size: int = 16) -> dict[str, np.ndarray]:
    source = open_domain("emoji", style, "val")
    return {source.ids[j]: resize(source[j]["image"], size) for j in range(COUNT)}


def put(workdir, pictures: dict[str, np.ndarray], method: str = "sdedit"):
    """Lay pictures where sampling would."""
    for name, image in pictures.items():
        write_png(workdir / "samples" / method / f"{name}.png", image)
    return workdir / "samples" / method


def noisy(pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    return {
        name: (image + r.normal(0, 40, image.shape)).clip(0, 255).astype(np.uint8)
        for name, image in pictures.items()
    }


def read_csv(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


# --- numbers ---


def test_numbers_are_those_made_by_hand_against_source_and_true_target(emoji, tmp_path):
    sources, targets = emoji_pictures("noto"), emoji_pictures("fluent")
    made = noisy(targets)
    put(tmp_path, made)
    summary = translations.evaluate(emoji(), tmp_path)["sdedit"]
    assert list(summary) == [f"{m} to {w}" for w in ("source", "true target") for m in METRICS]
    rows = read_csv(tmp_path / "eval" / "sdedit" / "per_image.csv")
    assert [row["name"] for row in rows] == list(sources)
    for what, references in (("source", sources), ("true target", targets)):
        expected = [by_hand(made[name], references[name]) for name in made]
        for metric in METRICS:
            column = [float(row[f"{metric} to {what}"]) for row in rows]
            values = [e[metric] for e in expected]
            tolerance = 2e-4 if metric == "SSIM" else 1e-9
            np.testing.assert_allclose(column, values, atol=tolerance)
            got = summary[f"{metric} to {what}"]
            assert got["value"] == pytest.approx(np.mean(values), abs=tolerance)
            assert got["images"] == COUNT
    # The right pair is nearer than the source: the two columns are not mixed up.
    assert summary["L2 to true target"]["value"] < summary["L2 to source"]["value"]


def test_results_that_are_the_source_and_results_that_are_the_pair(emoji, tmp_path, capsys):
    put(tmp_path, emoji_pictures("noto"), "sdedit")
    put(tmp_path, emoji_pictures("fluent"), "ilvr")
    results = translations.evaluate(emoji(eval__methods="sdedit,ilvr"), tmp_path)
    perfect = {"L2": 0, "MSE": 0, "PSNR": 100, "SSIM": 1}
    for method, what in (("sdedit", "source"), ("ilvr", "true target")):
        for metric, value in perfect.items():
            got = results[method][f"{metric} to {what}"]
            assert [got[k] for k in ("value", "low", "high")] == pytest.approx(
                [value] * 3, abs=1e-5
            )
    # How far pairs are apart does not depend on which of the two is called the result.
    for metric in METRICS:
        there, back = (
            results[m][f"{metric} to {w}"]["value"]
            for m, w in (("sdedit", "true target"), ("ilvr", "source"))
        )
        assert there == pytest.approx(back, rel=1e-5) and there != pytest.approx(perfect[metric])
    shown = capsys.readouterr().out
    assert "to the source" in shown and "to the true target" in shown
    assert "100 [100, 100]" in shown and f"{COUNT} images" in shown
    assert all(any(line.startswith(m) for line in shown.splitlines()) for m in ("sdedit", "ilvr"))


def test_the_last_table_says_what_is_gained_over_the_source(emoji, tmp_path, capsys):
    put(tmp_path, emoji_pictures("fluent"))
    results = translations.evaluate(emoji(), tmp_path)
    text = capsys.readouterr().out
    header, _, method, unchanged = text.split("\n\n")[-1].strip().splitlines()
    assert header.split("  ")[-2:] == ["L2 to true target ↓", "SSIM to true target ↑"]
    assert results["sdedit"]["L2 to true target"]["value"] == 0
    assert method.split() == ["SDEdit", "0", "1"]
    record = read_json(tmp_path / "eval" / "sdedit" / "metrics.json")
    floor = record["realism"]["floors"]["source unchanged"]["L2 to true target"]
    sources, truths = emoji_pictures("noto"), emoji_pictures("fluent")
    expected = np.mean([by_hand(sources[name], truths[name])["L2"] for name in sources])
    assert floor["value"] == pytest.approx(expected)
    assert unchanged.split()[:3] == ["source", "unchanged", f"{expected:.3g}"]


def test_one_grey_level_apart(tiny, pictures, tmp_path):
    """Numbers that a person can check: every value 51 = 255 / 5 above the source's."""
    folder = tmp_path / "in"
    for n in range(3):
        write_png(folder / f"{n}.png", np.full((16, 16, 3), 40 * n, np.uint8))
        write_png(tmp_path / "out" / f"{n}.png", np.full((16, 16, 3), 40 * n + 51, np.uint8))
    config = tiny(method="sdedit", sample__input=folder, sample__output=tmp_path / "out")
    summary = translations.evaluate(config, tmp_path)["sdedit"]
    assert set(summary) == {f"{m} to source" for m in METRICS}, "a folder has no true pairs"
    assert summary["MSE to source"]["value"] == pytest.approx(0.04)
    assert summary["L2 to source"]["value"] == pytest.approx(0.2 * np.sqrt(16 * 16 * 3))
    assert summary["PSNR to source"]["value"] == pytest.approx(-10 * np.log10(0.04), abs=1e-6)
    expected = np.mean([(2 * x * (x + 0.2) + 1e-4) / (x**2 + (x + 0.2) ** 2 + 1e-4)
                        for x in (0, 40 / 255, 80 / 255)])  # fmt: skip
    assert summary["SSIM to source"]["value"] == pytest.approx(expected, abs=1e-3)


def test_sources_of_another_size_are_read_as_sampling_reads_them(tiny, tmp_path):
    folder, wide = tmp_path / "in", np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    write_png(folder / "a.png", wide)
    write_png(tmp_path / "out" / "a.png", resize(wide, 16, filter="bicubic"))
    config = tiny(method="sdedit", sample__input=folder, sample__output=tmp_path / "out")
    apart = translations.evaluate(config, tmp_path)["sdedit"]["L2 to source"]["value"]
    config.data.filter = "bicubic"
    assert translations.evaluate(config, tmp_path)["sdedit"]["L2 to source"]["value"] == 0 < apart


def test_intervals_hold_the_mean(emoji, tmp_path):
    put(tmp_path, noisy(emoji_pictures("fluent")))
    first, same = (translations.evaluate(emoji(), tmp_path)["sdedit"] for _ in range(2))
    assert first == same
    for name, value in first.items():
        assert value["low"] < value["value"] < value["high"], name
    # By hand: means of images drawn with replacement, their 2.5% and 97.5% quantiles.
    values = [float(r["L2 to source"]) for r in read_csv(tmp_path / "eval/sdedit/per_image.csv")]
    draws = np.random.default_rng(9).choice(values, (20_000, COUNT)).mean(1)
    width = np.ptp(np.quantile(draws, (0.025, 0.975)))
    name = "L2 to source"
    long = translations.evaluate(emoji(eval__bootstrap=20_000), tmp_path)["sdedit"][name]
    assert long["high"] - long["low"] == pytest.approx(width, rel=0.05)


def test_more_images_than_are_read_at_a_time(tiny, tmp_path):
    r = np.random.default_rng(0)
    for n in range(70):
        write_png(tmp_path / "in" / f"{n}.png", r.integers(0, 256, (16, 16, 3), np.uint8))
        write_png(tmp_path / "out" / f"{n}.png", np.full((16, 16, 3), 2 * n, np.uint8))
    folders = {"sample__input": tmp_path / "in", "sample__output": tmp_path / "out"}
    config = tiny(method="sdedit", eval__reference="", **folders)
    summary = translations.evaluate(config, tmp_path)["sdedit"]
    expected = {
        f"{n}.png": by_hand(decode(tmp_path / f"in/{n}.png"), decode(tmp_path / f"out/{n}.png"))
        for n in range(70)
    }
    assert summary["L2 to source"]["images"] == 70
    for row in read_csv(tmp_path / "eval" / "sdedit" / "per_image.csv"):
        assert float(row["L2 to source"]) == pytest.approx(expected[row["name"]]["L2"])


# --- what is written ---


def test_tables_and_the_record(emoji, tmp_path):
    put(tmp_path, noisy(emoji_pictures("fluent")))
    config = emoji()
    summary = translations.evaluate(config, tmp_path)["sdedit"]
    out = tmp_path / "eval" / "sdedit"
    assert {p.name for p in out.iterdir()} == {"metrics.json", "metrics.csv", "per_image.csv"}
    assert not (tmp_path / "eval" / "sheet.png").exists(), "one method has its own sheet"
    record = read_json(out / "metrics.json")
    assert record["metrics"] == summary and record["method"] == "sdedit"
    assert record["config"]["data"]["image_size"] == 16
    assert record["config"]["eval"]["bootstrap"] == 200 and "bootstrap" in record["interval"]
    names = "\n".join(emoji_pictures("noto"))
    assert record["image_list_sha256"] == hashlib.sha256(names.encode()).hexdigest()
    assert record["sampling"] is None and record["packages"]["jax"] and record["cdsde"]
    table = read_csv(out / "metrics.csv")
    assert [row.pop("metric") for row in table] == list(summary)
    assert [{k: float(v) for k, v in row.items()} for row in table] == list(summary.values())


def test_the_settings_of_sampling_are_handed_on(emoji, tmp_path):
    folder = put(tmp_path, emoji_pictures("fluent"))
    config = emoji(sample__split="val", sample__seed=4)
    settings = records.settings_record(config, {"score": "mine"}, inputs.open_input(config))
    (folder / "settings.json").write_text(json.dumps(settings))
    translations.evaluate(config, tmp_path)
    record = read_json(tmp_path / "eval" / "sdedit" / "metrics.json")
    assert record["sampling"]["weights"] == {"score": "mine"}
    assert record["sampling"]["sample"]["seed"] == 4


def test_several_methods_side_by_side(emoji, tmp_path, monkeypatch):
    shown = []
    real = translations.contact_sheet

    def contact_sheet(rows, titles, **options):
        shown.append((rows, titles))
        return real(rows, titles, **options)

    monkeypatch.setattr(translations, "contact_sheet", contact_sheet)
    made = {"egsde": noisy(emoji_pictures("fluent")), "contrastive_sde": emoji_pictures("noto")}
    for method, images in made.items():
        put(tmp_path, images, method)
    config = emoji("sdedit", eval__methods="egsde, contrastive_sde", sample__sheet=3)
    results = translations.evaluate(config, tmp_path)
    assert list(results) == ["egsde", "contrastive_sde"] and config.method == "sdedit"
    ((rows, titles),) = shown
    assert titles == ["source", "EGSDE", "Contrastive-SDE", "true target"] and len(rows) == 3
    columns = (emoji_pictures("noto"), *made.values(), emoji_pictures("fluent"))
    for row, name in zip(rows, columns[0], strict=False):
        for image, column in zip(row, columns, strict=True):
            np.testing.assert_array_equal(image, column[name])
    assert decode(tmp_path / "eval" / "sheet.png").ndim == 3
    for method in made:
        assert read_json(tmp_path / "eval" / method / "metrics.json")["method"] == method


# --- mistakes, one sentence each ---


def said(expected: str, config, workdir):
    with pytest.raises(ValueError, match=expected) as error:
        translations.evaluate(config, workdir)
    assert one_sentence(str(error.value))
    assert not (workdir / "eval").exists()


def test_missing_results_are_counted_and_named(emoji, tmp_path):
    said(r"5 of 5 results are missing in .*samples/sdedit \(first: .*\.png\); run --mode=sample",
         emoji(), tmp_path)  # fmt: skip
    folder = put(tmp_path, emoji_pictures("fluent"))
    gone = sorted(folder.iterdir())[3]
    gone.unlink()
    said(rf"1 of 5 results are missing in .* \(first: {gone.name}\)", emoji(), tmp_path)
    assert (
        translations.evaluate(emoji(sample__limit=3), tmp_path)["sdedit"]["L2 to source"]["value"]
        > 0
    )


def test_results_of_pictures_that_were_replaced_are_refused(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    config = tiny(method="sdedit", sample__input=folder, eval__reference="", eval__bootstrap=20)
    source = inputs.open_input(config)
    out = records.output_folder(config, tmp_path)
    for j, name in enumerate(("a.png", "b.png")):
        write_png(out / name, pixels[j], source=content(source, j))
    translations.evaluate(config, tmp_path)
    Image.fromarray(pixels[0]).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"1 of 2 results .* other images .*\(first: b.png\)") as e:
        translations.evaluate(config, tmp_path)
    assert one_sentence(str(e.value))


def test_results_of_another_size(emoji, tmp_path):
    put(tmp_path, emoji_pictures("fluent", 32))
    said(r"\.png is 32x32, config.data.image_size is 16: .*run --mode=sample again", emoji(),
         tmp_path)  # fmt: skip


def test_results_of_another_method_or_split(emoji, tmp_path):
    folder = put(tmp_path, emoji_pictures("fluent"))
    config = emoji(sample__split="val")
    settings = records.settings_record(config, {}, inputs.open_input(config))
    (folder / "settings.json").write_text(json.dumps(settings))
    said("holds results of method sdedit, split val, and method ilvr, split val is to be",
         emoji("ilvr", sample__output=folder), tmp_path)  # fmt: skip
    said("split test is to be evaluated; change config.method or config.sample.split",
         emoji(sample__split="test"), tmp_path)  # fmt: skip


def recorded(config, folder, **weights):
    """Lay the record of results by a config beside them."""
    settings = records.settings_record(config, weights, inputs.open_input(config))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))


OTHERS = [
    ({"sample__seed": 5}, "sample.seed was 0 and is 5"),
    ({"sample__start": 100}, "sample.start was None and is 100, start was 500 and is 100"),
    ({"data__fit": "stretch"}, "data.fit was crop and is stretch"),
    ({"sdedit__start": 400}, "sdedit.start was 500 and is 400, start was 500 and is 400"),
    ({"dtype": "bfloat16"}, "dtype was float32 and is bfloat16"),
    ({"weights__score": "b.safetensors"}, r"weights.score was a.safetensors \(sha256 1\) and is b"),
]


@pytest.mark.parametrize("changes, named", OTHERS, ids=lambda x: str(x))
def test_results_of_other_settings(changes, named, emoji, tmp_path):
    folder = put(tmp_path, emoji_pictures("fluent"))
    recorded(emoji(), folder, score="a.safetensors (sha256 1)")
    said(rf"sdedit holds results made with other settings \(different: {named}.*\); give --mode="
         "eval the keys that --mode=sample had, or make the results again in another folder",
         emoji(**changes), tmp_path)  # fmt: skip


def test_keys_that_do_not_decide_pixels_may_differ(emoji, tmp_path):
    folder = put(tmp_path, emoji_pictures("fluent"))
    recorded(emoji(sample__limit=32), folder, score="a.safetensors (sha256 1)")
    more = {"sample__batch_size": 3, "sample__sheet": 2, "sample__trajectory": True}
    for weights in (None, "a.safetensors"):
        config = emoji(sample__limit=4, sample__output=folder, weights__score=weights, **more)
        summary = translations.evaluate(config, tmp_path)["sdedit"]
        assert summary["L2 to source"]["images"] == 4


def test_each_of_several_methods_has_the_keys_that_it_brings(emoji, tmp_path):
    eta, blocks = {"sample__eta": 0.5}, {"sddm__blocks": 4}
    for method, changes in {"sdedit": {}, "sddm": {}, "cyclediffusion": eta, "cut": {}}.items():
        changes = changes | blocks
        config = emoji(method, **changes)
        recorded(config, put(tmp_path, emoji_pictures("fluent"), method))
        # Whichever method the command line names beside them.
        for named in ("sdedit", "sddm", "cyclediffusion"):
            shared = emoji(named, eval__methods=f"{method},", **changes)
            assert list(translations.evaluate(shared, tmp_path)) == [method]
    shutil.rmtree(tmp_path / "eval")
    other = emoji(eval__methods="sdedit,sddm", sample__seed=1, **blocks)
    said("sample.seed was 0 and is 1", other, tmp_path)
    recorded(emoji("cyclediffusion", sample__eta=0.9), tmp_path / "samples" / "cyclediffusion")
    said("sample.eta was 0.9 and is 0.1", emoji(eval__methods="cyclediffusion,sdedit"), tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", '{"weights": []}', "\xff", "{", "["])
def test_a_damaged_record_is_named(text, emoji, tmp_path):
    folder = put(tmp_path, emoji_pictures("fluent"))
    (folder / "settings.json").write_bytes(text.encode("latin-1"))
    said(r"'.*samples/sdedit/settings.json' is damaged: .*; delete the folder, or choose another",
         emoji(), tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match=r"settings.json' is damaged") as error:
        records.claim(folder, {}, [])
    assert one_sentence(str(error.value))


def test_one_folder_is_not_the_results_of_several_methods(emoji, tmp_path):
    said("config.eval.methods names 2 methods, config.sample.output one folder",
         emoji(eval__methods="sdedit,ilvr", sample__output=tmp_path), tmp_path)  # fmt: skip


def test_a_broken_result_is_named(emoji, tmp_path):
    folder = put(tmp_path, emoji_pictures("fluent"))
    broken = sorted(folder.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:50])
    said(f"'{broken.name}' cannot be decoded", emoji(), tmp_path)


def test_pictures_that_are_too_small_for_ssim(tiny, tmp_path):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    small = {"data__image_size": 8, "ilvr__factor": 2, "egsde__factor": 2}
    small |= {"contrastive_sde__factor": 2, "train__encoder__factor": 2}
    small |= {"sddm__factor": 2}
    config = tiny(
        method="sdedit", sample__input=tmp_path / "in", sample__output=tmp_path / "out", **small
    )
    said("SSIM needs sides of at least 11 pixels", config, tmp_path)


# --- realism ---


def test_realism_of_methods_beside_what_nothing_and_the_truth_score(
    emoji, tmp_path, monkeypatch, capsys
):
    extractor = quick_extractor(monkeypatch)
    measure = realism.MEASURES["quick"]
    monkeypatch.setattr(realism, "MEASURES", {"efficientnet_lite0": measure})
    named = extractor._replace(name="efficientnet_lite0")
    monkeypatch.setattr(extractors, "load", lambda name, path=None: named)
    put(tmp_path, emoji_pictures("fluent"), "sdedit")
    put(tmp_path, emoji_pictures("noto"), "ilvr")
    config = emoji(eval__methods="sdedit,ilvr", eval__reference="train", eval__cache=tmp_path / "c")
    results = translations.evaluate(config, tmp_path)
    rows = read_json(tmp_path / "eval" / "ilvr" / "metrics.json")["realism"]["floors"]
    # One method's results are the truth, the other's the sources.
    assert rows["true target"]["FD"] == results["sdedit"]["FD"]
    assert rows["source unchanged"]["FD"] == results["ilvr"]["FD"]
    said = capsys.readouterr().out
    assert "realism" in said and "source unchanged" in said and "precision-corners" in said
    how = read_json(tmp_path / "eval" / "ilvr" / "metrics.json")["realism"]
    assert how["reference"] | {"domain": "fluent", "split": "train"} == how["reference"]
    assert (
        how["extractors"] == {"efficientnet_lite0": "00"}
        and len(list((tmp_path / "c").iterdir())) == 1
    )
    few = translations.evaluate(emoji(sample__limit=3, eval__reference="train"), tmp_path)
    assert "FD" not in few["sdedit"]
    with pytest.raises(ValueError, match="--config.eval.reference=None leaves it out"):
        translations.evaluate(emoji(eval__reference="tain"), tmp_path)
