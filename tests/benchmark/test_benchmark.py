"""The benchmark: what it plans, that it goes on where it was cut off, and what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import one_sentence

from cdsde import load_config
from cdsde.benchmark import __main__ as command_line_of
from cdsde.benchmark import (
    edits,
    floors,
    guides,
    page,
    paired,
    plan,
    plots,
    published,
    summary,
)
from cdsde.benchmark import run as run_of
from cdsde.benchmark.task import Task
from cdsde.config import EDITORS, GANS, METHODS
from cdsde.data import decode, inputs, write_png
from cdsde.evaluate import translations
from cdsde.runtime import records

ROOT = Path(__file__).parents[2]
TASK, FLAGSHIP = "twemoji2fluent", plan.TASKS[0]


def entry(value, half=1.0):
    return {"value": value, "low": value - half, "high": value + half, "images": 9}


def made_up() -> dict:
    """Results of every part, with numbers that say where they are from."""
    config = load_config(ROOT / "configs" / f"{TASK}.py")
    runs = [plan.Run("main", TASK, f, f, None, {}) for f in floors.names(True, False)]
    runs += plan.main(TASK, plan.METHODS, range(3))
    runs += plan.fronts(TASK, plan.METHODS, config)
    runs += plan.ablations(TASK, plan.METHODS, config)
    runs += plan.work(TASK, plan.METHODS, config)
    runs += plan.convergence(TASK, plan.METHODS, config, lambda stage, n: f"{stage}-{n}")
    results = {"tasks": {}, "points": [], "runs": {}}
    for n, one in enumerate(runs):
        metrics = {
            "L2 to source": entry(5 + n % 7),
            "SSIM to source": entry(0.5, 0.1),
            "FD-EffNetLite0-block4": entry(20.0 + one.seed),
            "KID-EffNetLite0 x1000": entry(30 - n % 5),
        }
        provenance = {"device": "1 x cpu", "written": "2026-01-02T03:04:05"}
        results["runs"][str(n)] = {
            "task": TASK,
            "metrics": metrics,
            plan.PACE: 0.1 + n % 5,
            "made": provenance,
            "per_image": {"L2 to source": [1.0, 2.0, 4.0], "SSIM to source": [0.1, 0.2, 0.4]},
        }
        point = {k: v for k, v in one._asdict().items() if k != "changes"}
        results["points"].append({**point, "run": str(n)})
    results["tasks"][TASK] = {
        "images": 9,
        "split": "test",
        "image_size": 32,
        "reference": {"domain": "fluent", "split": "train", "images": 99},
    }
    return results


def cells_of(line: str) -> list[str]:
    """A row of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_planned_run_is_a_valid_config():
    for task in (*plan.TASKS, "cat2dog"):
        path = ROOT / "configs" / f"{task}.py"
        config = load_config(path)
        runs = plan.main(task, plan.METHODS, range(5)) + plan.fronts(task, plan.METHODS, config)
        runs += plan.ablations(task, plan.METHODS, config)
        runs += plan.work(task, plan.METHODS, config)
        for r in runs:
            load_config(path, {"method": r.method, "sample.seed": r.seed, **r.changes})
    assert sorted(plan.METHODS) == sorted(set(METHODS) - set(EDITORS)) and plan.GANS == GANS


@pytest.mark.slow
def test_the_row_that_cheats_learns_from_pairs_what_the_target_looks_like():
    config = load_config("gothic2mincho", {"sample.split": "test", "score.channels": 16})
    translate = paired.trained(config, steps=30)
    source, truth = inputs.open_input(config), inputs.open_truth(config)
    x, y = (np.stack([s[j]["image"] for j in range(20)]) for s in (source, truth))
    ours = np.stack([translate(image) for image in x])
    far = lambda a: np.sqrt(((a / 255.0 - y / 255.0) ** 2).sum((1, 2, 3))).mean()  # noqa: E731
    assert ours.dtype == np.uint8
    assert far(ours) < 0.85 * far(x)
    assert set(np.unique(paired.sharp(ours))) == {0, 255}


def test_only_tasks_in_black_and_white_have_the_row_that_cheats():
    assert floors.PAIRED in floors.names(True, True)
    assert floors.PAIRED not in floors.names(True, False)
    assert floors.PAIRED not in floors.names(False, True)
    assert set(floors.ALL) == set(floors.names(True, True))


def test_floors():
    r = np.random.default_rng(0)
    real = r.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    source = real[[3, 1]] // 2 + 60

    def make(name):
        table = np.float32([np.arange(256)[::-1]] * 3)
        return floors.pictures(name, lambda j: source[j], lambda j: real[j], real, table)

    np.testing.assert_array_equal(make(floors.IDENTITY)(1), source[1])
    np.testing.assert_array_equal(make(floors.TRUTH)(1), real[1])
    np.testing.assert_array_equal(make(floors.COLOURS)(1), 255 - source[1])
    np.testing.assert_array_equal(make(floors.MEAN)(0), np.round(real.mean(0)))
    found = [make(floors.RETRIEVAL)(j) for j in range(2)]
    coarse = real.reshape(5, 8, 2, 8, 2, 3).mean((2, 4))
    for j, picture in enumerate(found):
        wanted = source[j].reshape(8, 2, 8, 2, 3).mean((1, 3))
        nearest = np.argmin(((coarse - wanted) ** 2).sum((1, 2, 3)))
        np.testing.assert_array_equal(picture, real[nearest])


def test_table_is_mean_and_deviation_over_seeds():
    header, rows = summary.main_table(made_up(), TASK)
    assert header[1].startswith("FD-EffNetLite0-block4")
    by_name = {row[0]: row for row in rows}
    assert by_name["SDEdit"][1] == "21.0 ± 1.00"  # 20, 21, 22
    assert by_name["source unchanged"][1] == "20.0"
    order = [n for n in by_name if n in ("SDEdit", "ILVR", "EGSDE", "Contrastive-SDE")]
    assert order == ["SDEdit", "ILVR", "EGSDE", "Contrastive-SDE"]
    text = summary.report(made_up())
    assert "| SDEdit | 21.0 ± 1.00 |" in text and "9 test images at 32²" in text
    for heading in ("Ablations", "Quality against time", "Training steps"):
        assert heading in text


def results() -> dict:
    return json.loads((ROOT / "docs" / "results" / "results.json").read_text())


def page_lines(name: str) -> list[str]:
    return [li.strip() for li in (ROOT / name).read_text(encoding="utf-8").splitlines()]


def table_of(lines: list[str], start: str) -> tuple[list[str], list[str]]:
    """Header cells and rows of the first table whose header starts so."""
    begin = next(i for i, line in enumerate(lines) if line.startswith(start))
    return cells_of(lines[begin]), lines[begin + 2 : lines.index("", begin)]


@pytest.mark.parametrize("task", [TASK, "noto2fluent", "fluent2twemoji"])
def test_tables_of_the_docs_are_of_the_results(task):
    """A benchmark run anew shows here where the page is still that of the one before."""
    header, rows = summary.main_table(results(), task)
    expected = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    (_, *columns), shown = table_of(page_lines("docs/results.md"), f"| `{task}` | FD")
    assert len(shown) >= 8
    for line in shown:
        name, *cells = cells_of(line)
        assert cells == [expected[name.strip("*")][c] for c in columns], (task, name)


def test_the_table_of_the_readme_is_of_the_results():
    header, rows = summary.main_table(results(), FLAGSHIP)
    expected = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    (_, *columns), shown = table_of(page_lines("README.md"), f"| `{FLAGSHIP}`")
    assert len(shown) >= 6
    for line in shown:
        name, *cells = cells_of(line)
        assert cells == [expected[name.strip("*")][c] for c in columns], name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 7000


def test_published_numbers_stand_beside_a_published_task():
    results = made_up()
    as_cat2dog = json.loads(json.dumps(results).replace(TASK, "cat2dog"))
    assert "65.8 ± 0.77" in summary.report(as_cat2dog)
    assert "65.8" not in summary.report(results)
    for rows in published.TABLE.values():
        assert all(len(row) == len(published.METRICS) for row in rows.values())


def test_page_needs_nothing_else(tmp_path):
    results = made_up()
    text = page.page(results, tmp_path)
    assert text == page.page(results, tmp_path), "the same results are the same file"
    assert text.count("<svg") == 4 and "Contrastive-SDE" in text
    for outside in ("src=http", 'src="http', "<link", "<script", "@import"):
        assert outside not in text
    assert plots.fronts({**results, "points": []}, TASK, "L2 to source") is None


@pytest.fixture(scope="module")
def command(compiled_programs):
    env = dict(
        os.environ,
        JAX_COMPILATION_CACHE_DIR=compiled_programs,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_NUM_CPU_DEVICES="1",
    )

    def call(*args):
        command = [sys.executable, "-m", "cdsde.benchmark", *map(str, args)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    return call


@pytest.mark.slow
def test_it_runs_and_goes_on(command, tmp_path):
    out = tmp_path / "benchmark"
    args = [f"--tasks={TASK}", f"--output={out}", f"--workdir={tmp_path / 'work'}", "--parts=main"]
    args += [f"--config.{s}" for s in ("sample.limit=5", "sample.steps=2", "eval.reference=val")]
    first = command(*args, "--methods=sdedit", "--seeds=1")
    assert first.returncode == 0, first.stderr
    results = json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == len(floors.names(True, False)) + 1
    one = next(r for r in results["runs"].values() if r["method"] == "sdedit")
    assert one["evaluations"] == 2 and len(one["per_image"]["L2 to source"]) == 5
    assert one["settings"]["sample"]["seed"] == 0 and one["made"]["packages"]
    identity = next(r for r in results["runs"].values() if r["method"] == floors.IDENTITY)
    assert identity["metrics"]["L2 to source"]["value"] == 0
    assert {p.name for p in out.iterdir()} == {"results.json", "table.md", "report.html", "sheets"}

    more = command(*args, "--methods=sdedit", "--seeds=2")
    assert more.returncode == 0, more.stderr
    again = json.loads((out / "results.json").read_text())
    assert len(again["runs"]) == len(results["runs"]) + 1
    assert results["runs"].items() <= again["runs"].items()
    assert again["tasks"][TASK]["images"] == 5


def test_the_part_of_edits_measures_the_named_editors(tmp_path, monkeypatch):
    made = []
    row = {"L2 to source": entry(5), "SSIM to source": entry(0.5, 0.1)}

    def edit(config, folder):
        made.append(config)
        for name in records.output_names(inputs.open_input(config).ids):
            for place in (folder, folder / edits.edit_run.RECONSTRUCTION):
                write_png(place / name, np.full((64, 64, 3), len(made), np.uint8))
        return folder

    monkeypatch.setattr(edits.edit_run, "edit", edit)
    monkeypatch.setattr(edits.edits, "evaluate_edits", lambda c, folder: {c.method: row})
    args = ["--parts=edits", f"--output={tmp_path}", f"--workdir={tmp_path}"]
    command_line_of.benchmark([*args, "--methods=p2p,ledits", "--config.cache=off"])
    assert [c.method for c in made] == ["p2p", "ledits", "p2p"]
    assert [c.edit.inversion for c in made] == ["next", "next", "null_text"]
    assert made[1].edit.steps == 34 and made[0].edit.attention == 0.4
    text = (tmp_path / "edits_dark_light.md").read_text()
    assert "| p2p, null text | 5.00 [4.00, 6.00] | 0.500 [0.400, 0.600] |" in text
    assert json.loads((tmp_path / "edits_dark_light.json").read_text())["ledits"] == row
    sheet = decode(tmp_path / "sheets" / "edits_dark_light.png", "sheet")
    columns = [int((sheet == made).sum() // (6 * 128 * 128 * 3)) for made in (1, 2, 3)]
    assert columns == [2, 1, 1]  # the first one's reconstruction, too
    assert not (tmp_path / "results.json").exists()


def test_results_of_two_tasks_are_never_taken_for_each_other(tmp_path, monkeypatch):
    # The same names in the same order, the same target: only the pictures differ.
    monkeypatch.setattr(translations, "open_reference", lambda *_: translations.Reference((), {}))
    monkeypatch.chdir(ROOT)
    tasks = [Task(name, tmp_path, {}) for name in (TASK, "noto2fluent")]
    for method in (floors.IDENTITY, floors.RETRIEVAL, "sdedit"):
        wanted = plan.Run("main", "", method, method, None, {})
        keys = {task.key(task.settings(wanted)[2]) for task in tasks}
        assert len(keys) == 2


def test_results_of_other_weights_or_of_an_older_method_are_not_current(tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "open_reference", lambda *_: translations.Reference((), {}))
    monkeypatch.chdir(ROOT)
    task = Task(TASK, tmp_path, {})
    wanted = plan.Run("fronts", TASK, "sdedit", "M", 100, {"sample.start": 100}, seed=2)
    record = task.settings(wanted)[2]
    point = {**wanted._asdict(), "run": task.key(record)}
    assert task.is_current(point, json.loads(json.dumps(record)))
    floor = wanted._replace(method=floors.IDENTITY, changes={})
    unchanged = task.settings(floor)[2]
    assert task.is_current({**floor._asdict(), "run": task.key(unchanged)}, unchanged)
    other = {**record, "weights": {"score": "another (sha256 0123)"}}
    assert not task.is_current({**point, "run": task.key(other)}, other)
    older = {**record, "sdedit": {}}
    assert not task.is_current({**point, "run": task.key(older)}, older)
    # The same network and keys, but the task's config was another when the run was made.
    assert not task.is_current({**point, "changes": {}}, record)
    # Its changes and today's config do not go together.
    impossible = {**wanted.changes, "sample.steps": 600, "sample.start": 500}
    assert not task.is_current({**point, "changes": impossible}, record)
    # A network of the run's own need not be the task's.
    own = {"changes": {**wanted.changes, "weights.score": "x"}, "run": task.key(other)}
    assert task.is_current({**point, **own}, other)
    # Measured with fewer resamples, or on fewer images.
    for changed in ({"eval.bootstrap": 50}, {"sample.limit": 5}):
        assert not Task(TASK, tmp_path, changed).is_current(point, record)


def test_a_run_of_some_methods_keeps_the_points_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "open_reference", lambda *_: translations.Reference((), {}))
    monkeypatch.chdir(ROOT)
    task = Task(TASK, tmp_path, {})
    config = task.config
    stored = plan.main(TASK, ["sdedit", "ilvr"], range(3)) + plan.fronts(TASK, ["ilvr"], config)
    stored.append(stored[-1]._replace(x=5, changes={"sample.steps": 5}))  # of an earlier plan
    results = {"tasks": {}, "points": [], "runs": {}}

    def keep(run):
        record = task.settings(run)[2]
        key = task.key(record)
        results["runs"][key] = {"task": TASK, "settings": record}
        results["points"].append({**run._asdict(), "run": key})

    for one in stored:
        keep(one)
    monkeypatch.setattr(run_of.Maker, "make", lambda *_: pytest.fail("everything is there"))
    before = len(results["points"])
    run_of.go(task, plan.main(TASK, ["sdedit"], range(1)), results, tmp_path / "results.json")
    assert len(results["points"]) == before
    run_of.go(task, plan.fronts(TASK, ["ilvr"], config), results, tmp_path / "results.json")
    assert len(results["points"]) == before - 1
    assert json.loads((tmp_path / "results.json").read_text())["points"]
    # A run that fails, or cannot begin, loses nothing that is known.
    before = sorted(p["run"] for p in results["points"])

    def broken(*_):
        raise ValueError("broken")

    monkeypatch.setattr(run_of.Maker, "make", broken)
    more = plan.main(TASK, ["ddib", "sdedit", "ilvr"], range(3))
    with pytest.raises(ValueError, match="broken"):
        run_of.go(task, more, results, tmp_path / "results.json")
    lacking = plan.Run("main", TASK, "cut", "cut", None, {"weights.cut": None})
    with pytest.raises(ValueError, match="cut needs a trained"):
        run_of.go(task, [lacking, *more], results, tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())["points"]
    assert sorted(p["run"] for p in stored) == before


def test_a_run_that_reads_the_source_s_network_loads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "open_reference", lambda *_: translations.Reference((), {}))
    monkeypatch.chdir(ROOT)
    task = Task(TASK, tmp_path, {})
    for weight, reads in ((0.0, False), (0.5, True), (0.0, False)):
        changes = {"contrastive_sde.score_weight": weight}
        run = plan.Run("ablations", TASK, "contrastive_sde", "x", None, changes)
        assert ("source_score" in task.settings(run)[1]) == reads


@pytest.mark.slow
def test_tasks_of_the_same_domains_share_what_guides_them(tmp_path, monkeypatch, on_devices):
    monkeypatch.setattr(translations, "open_reference", lambda *_: translations.Reference((), {}))
    monkeypatch.chdir(ROOT)
    on_devices(1)
    sizes = {"encoder.channels": 32, "encoder.channel_mult": (1,), "train.encoder.batch_size": 4}
    tasks = [Task(name, tmp_path, sizes) for name in (TASK, "fluent2twemoji")]
    first = guides.trained(tasks[0], "encoder", 1)
    more = guides.trained(tasks[0], "encoder", 2)  # goes on from the first
    written = more.stat().st_mtime_ns
    assert guides.trained(tasks[1], "encoder", 2) == more and more.stat().st_mtime_ns == written
    assert first.read_bytes() != more.read_bytes()
    config = tasks[0].config
    config.train.encoder.learning_rate *= 2
    assert guides.training_hash(config, "encoder") != guides.training_hash(
        tasks[1].config, "encoder"
    )


def test_results_that_cannot_be_read_are_named_and_left(command, tmp_path):
    (tmp_path / "results.json").write_text('{"tasks": ')
    done = command(f"--output={tmp_path}")
    assert done.returncode == 1 and "results.json is no JSON" in done.stderr
    assert one_sentence(done.stderr.strip().splitlines()[-1])
    assert (tmp_path / "results.json").read_text() == '{"tasks": '


@pytest.mark.slow
def test_bad_arguments_are_told_in_a_sentence(command, tmp_path):
    for wrong, said in (
        ("--methods=egsd", "egsde"),
        ("--parts=mian", "main"),
        ("--tasks=cat2dig", "cat2dog"),
        ("--config.sample.step=3", "sample.steps"),
        ("--config.eval.reference=None", "such as train"),
        ("--set=sample.steps=3", "is now --config.KEY=VALUE"),
    ):
        done = command(wrong, f"--output={tmp_path}")
        assert done.returncode == 1 and said in done.stderr
        assert one_sentence(done.stderr.strip().splitlines()[-1])
