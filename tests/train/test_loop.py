"""The training loop: logs, reports, stages and what it reads."""

import csv
import math
import struct

import jax
import numpy as np
import pytest
from train_helpers import assert_same_bits, rows

from cdsde.data import images
from cdsde.runtime import mesh, progress
from cdsde.train import loop, previews, stages
from cdsde.weights import checkpoint

pytestmark = pytest.mark.usefixtures("compile_quickly")


class Killed(BaseException):
    """What nothing on the way catches."""


def killed_after(monkeypatch, steps: int):
    """The loop dies when it asks for batch `steps` + 1."""
    real, count = mesh.put_batch, iter(range(10**6))

    def put(*arguments):
        if next(count) == steps:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(mesh, "put_batch", put)
    return lambda: monkeypatch.setattr(mesh, "put_batch", real)


def test_a_run_that_is_resumed_logs_every_step_once(toy, tiny, tmp_path, monkeypatch):
    config = tiny(train__steps=9, train__checkpoint_every=4, train__keep=1)
    whole = loop.train_stage(config, tmp_path / "whole", "score")
    revive = killed_after(monkeypatch, 7)
    with pytest.raises(Killed):
        loop.train_stage(config, tmp_path / "cut", "score")
    # The report of the seventh step would have been written during the eighth.
    assert [row["step"] for row in rows(tmp_path / "cut", "score")] == [1, 2, 3, 4, 5, 6]
    assert checkpoint.latest_step(tmp_path / "cut", "score") == 4
    revive()
    again = loop.train_stage(config, tmp_path / "cut", "score")
    assert_same_bits(again, whole)
    table = rows(tmp_path / "cut", "score")
    assert [row["step"] for row in table] == list(range(1, 10))
    expected = rows(tmp_path / "whole", "score")
    for name in ("loss", "gradient_norm", "mean"):
        assert [row[name] for row in table] == [row[name] for row in expected]
    # Only `keep` checkpoints stay, the last step's among them.
    assert [p.name for p in (tmp_path / "cut/checkpoints/score").iterdir() if p.is_dir()] == ["9"]


def test_the_event_file_holds_what_the_table_holds(toy, tiny, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    loop.train_stage(tiny(train__steps=3), tmp_path, "score")
    seen = {}
    for path in (tmp_path / "logs" / "score").glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            seen |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    for row in rows(tmp_path, "score"):
        assert seen["loss", int(row["step"])] == pytest.approx(row["loss"], rel=1e-5)
        assert ("steps_per_second", int(row["step"])) in seen


def test_the_table_of_parameters_counts_them(toy, tiny, tmp_path):
    config = tiny(train__steps=1)
    loop.train_stage(config, tmp_path, "score")
    table = (tmp_path / "logs" / "score" / "parameters.txt").read_text()
    assert "colour" in table
    assert table.rstrip().endswith(f"Total: {config.score.channels * 3:,} -- "
                                   f"{config.score.channels * 12:,} bytes")  # fmt: skip


def test_reports_wait_for_no_step_but_those_that_are_saved(toy, tiny, tmp_path, monkeypatch):
    events, report = [], loop._report
    monkeypatch.setattr(
        loop, "_report", lambda *args: (events.append(("report", args[3])), report(*args))
    )
    put = mesh.put_batch
    monkeypatch.setattr(mesh, "put_batch", lambda *args: (events.append("step"), put(*args))[1])
    loop.train_stage(
        tiny(train__steps=6, train__log_every=2, train__checkpoint_every=4), tmp_path, "score"
    )
    one, two = ["step"], ["step", "step"]
    assert events == two + one + [("report", 2)] + one + [("report", 4)] + two + [("report", 6)]
    assert [row["step"] for row in rows(tmp_path, "score")] == [2, 4, 6]


def test_the_loop_moves_nothing_silently(toy, tiny, tmp_path, monkeypatch):
    """What moves between host and device does so by explicit calls."""
    step = loop.compiled

    def guarded(*args):
        compiled, init = step(*args)

        def run(*arguments):
            with jax.transfer_guard("disallow"):
                return compiled(*arguments)

        return run, init

    monkeypatch.setattr(loop, "compiled", guarded)
    report = loop._report

    def explicit(*args):
        with jax.transfer_guard("disallow"):
            report(*args)

    monkeypatch.setattr(loop, "_report", explicit)
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    assert len(rows(tmp_path, "score")) == 4


def test_a_trace_on_request(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=5, train__profile=2), tmp_path / "traced", "score")
    assert list((tmp_path / "traced" / "logs" / "score" / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "traced" / "logs" / "score" / "profile").rglob("perfetto_trace.json*"))
    loop.train_stage(tiny(train__steps=5), tmp_path / "plain", "score")
    assert not (tmp_path / "plain" / "logs" / "score" / "profile").exists()


def test_a_loss_that_is_not_finite_stops_and_leaves_what_was_good(toy, tiny, tmp_path):
    good = loop.train_stage(tiny(train__steps=2), tmp_path, "score")
    wild = tiny(
        method="sdedit",
        train__steps=8,
        train__checkpoint_every=100,
        train__score__learning_rate=1e30,
        train__score__muon_rate=1e30,
    )
    with pytest.raises(loop.NonFiniteLoss) as error:
        loop.train(wild, tmp_path)
    text = str(error.value)
    assert "\n" not in text and "the checkpoint of step 2 is kept" in text
    assert "score: the loss is inf" in text and "Lower config.train.score.learning_rate" in text
    assert checkpoint.latest_step(tmp_path, "score") == 2
    calm = tiny(method="sdedit", train__steps=8)
    loop.train(calm, tmp_path)
    assert checkpoint.latest_step(tmp_path, "score") == 8 and int(good.step) == 2
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path, "score"))
    with pytest.raises(loop.NonFiniteLoss, match="no checkpoint was written yet"):
        loop.train_stage(wild, tmp_path / "new", "score")
    with pytest.raises(loop.NonFiniteLoss, match=r"Lower config.train.score.learning_rate"):
        loop.train_stage(wild, tmp_path / "new", "source_score")


def test_a_broken_image_ends_a_training_with_a_checkpoint(toy, tiny, tmp_path, monkeypatch, warned):
    config = tiny(method="sdedit", train__steps=9, train__checkpoint_every=100)
    opened = loop.open_data

    def with_broken(*arguments):
        """The fourth batch meets a broken image."""

        def batches(start):
            data = opened(*arguments)(start)
            yield from (next(data) for _ in range(3))
            images.decode(b"", "bad.png")

        return batches

    monkeypatch.setattr(loop, "open_data", with_broken)
    with pytest.raises(ValueError, match=r"bad\.png' cannot be decoded .*: replace"):
        loop.train(config, tmp_path)
    assert checkpoint.latest_step(tmp_path, "score") == 3
    assert [row["step"] for row in rows(tmp_path, "score")] == [1, 2, 3]
    assert len(warned) == 1 and warned[0].startswith("score ends after step 3 of 9; the checkpoint")


def test_the_source_domains_score_network_is_a_stage_like_any_other(toy, tiny, tmp_path):
    changes = {"method": "ddib", "sample__solver": "ddim", "train__steps": 2}
    assert loop.pending_stages(tiny(**changes), tmp_path) == ("score", "source_score")
    assert stages.make(tiny(**changes), "source_score").domains == ("blue",)
    assert stages.make(tiny(**changes), "score").domains == ("yellow",)
    loop.train(tiny(**changes), tmp_path)
    assert loop.pending_stages(tiny(**changes), tmp_path) == ()
    assert (tmp_path / "checkpoints" / "source_score" / "2").exists()


def test_pending_stages(toy, tiny, tmp_path):
    def pending(**changes):
        return loop.pending_stages(tiny(**changes), tmp_path)

    assert pending(method="sdedit") == pending(method="ilvr") == ("score",)
    assert pending(method="egsde") == ("score", "classifier")
    assert pending(method="contrastive_sde") == ("score", "encoder")
    loop.train(tiny(method="sdedit", train__steps=2), tmp_path)
    assert pending(method="sdedit", train__steps=2) == ()
    assert pending(method="contrastive_sde", train__steps=2) == ("encoder",)
    assert pending(method="sdedit", train__steps=3) == ("score",), "more steps were asked for"
    assert pending(train__stage="classifier") == ("classifier",)
    # Asked for by name, a stage that is complete is looked at and left as it is.
    before = (tmp_path / "checkpoints" / "score" / "2").stat().st_mtime_ns
    loop.train(tiny(train__stage="score", train__steps=2), tmp_path)
    assert (tmp_path / "checkpoints" / "score" / "2").stat().st_mtime_ns == before
    loop.train(tiny(method="sdedit", train__steps=2), tmp_path)


def test_the_config_is_saved_with_the_checkpoint(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=2, train__seed=7), tmp_path, "score")
    saved = checkpoint.saved_config(tmp_path, "score")
    assert saved["train"]["seed"] == 7 and saved["score"]["channels"] == 32


def test_a_batch_that_does_not_divide(toy, tiny, tmp_path, on_devices):
    on_devices(8)
    with pytest.raises(
        ValueError, match="batch size of score is 12, not a multiple of 8 devices times"
    ):
        loop.train_stage(tiny(train__batch_size=12), tmp_path, "score")
    with pytest.raises(ValueError, match="is 8, not a multiple of .*train.accumulate=2"):
        loop.train_stage(tiny(train__accumulate=2), tmp_path, "score")


def test_data_that_are_not_there_stop_the_run_before_its_first_step(tiny, tmp_path):
    with pytest.raises(ValueError, match="has no domain 'green': use one of blue, yellow"):
        loop.train(tiny(data__target="green"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_accumulated_steps_run_in_the_loop(toy, tiny, tmp_path):
    config = tiny(train__steps=2, train__batch_size=16, train__accumulate=2)
    assert int(loop.train_stage(config, tmp_path, "score").step) == 2


def test_sheets_show_the_average_while_training(toy, tiny, tmp_path, monkeypatch):
    made = []

    class Sheet:
        def __init__(self, config):
            made.append(config)

        def __call__(self, ema):
            return np.full((4, 4, 3), len(made), np.uint8)

    monkeypatch.setattr(previews, "Preview", Sheet)
    loop.train_stage(tiny(train__steps=5, train__sample_every=2), tmp_path, "score")
    sheets = tmp_path / "logs" / "score"
    names = sorted(p.name for p in sheets.glob("*.png"))
    assert names == ["sheet_0000002.png", "sheet_0000004.png", "sheet_0000005.png"]
    assert len(made) == 1
    # A kill after a checkpoint leaves its sheet, too.
    real, there = checkpoint.save, []

    def save(manager, step, *rest):
        there.append((sheets / f"sheet_{step:07d}.png").exists())
        return real(manager, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    often = {"train__steps": 9, "train__sample_every": 2, "train__checkpoint_every": 2}
    loop.train_stage(tiny(**often), tmp_path, "score")
    assert there == [True, True, True]


def test_rows_of_a_table_are_never_lost_when_columns_change(tmp_path):
    writer = progress.Writer(tmp_path)
    writer.scalars(1, {"loss": 0.5})
    writer.scalars(2, {"loss": 0.25, "accuracy": 1.0})
    writer.close()
    writer = progress.Writer(tmp_path, resume_step=2)
    writer.scalars(3, {"loss": 0.125})
    writer.close()
    with (tmp_path / "metrics.csv").open(newline="") as f:
        table = list(csv.DictReader(f))
    assert [row["loss"] for row in table] == ["0.5", "0.25", "0.125"]
    assert [row["accuracy"] for row in table] == ["", "1", ""]
    assert not list(tmp_path.glob("*.new"))
