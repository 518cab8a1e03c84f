"""The training loop: logs, checkpoints, resuming, and what a kill leaves behind."""

import csv
import math
import multiprocessing
import os
import shutil
import signal
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from helpers import FOLDER, TINY, compile_cached, one_sentence
from train_helpers import assert_same_bits, distance, rows

from cdsde import load_config
from cdsde.data import images
from cdsde.networks import build
from cdsde.runtime import files, mesh, preemption, progress
from cdsde.train import loop, previews, stages, state
from cdsde.weights import checkpoint, resolve

pytestmark = pytest.mark.usefixtures("compile_quickly")


# --- the loop, around a network of one colour ---


def one_colour(config, domains) -> stages.Stage:
    """Learns the mean colour of the target's pictures; a draw joins in, so that keys matter."""
    width = config.score.channels

    def loss(params, batch, key):
        x = batch["image"].astype(jnp.float32) / 255
        noise = 0.1 * jax.random.normal(key, (1, 3))
        error = (x.mean((1, 2)) - params["colour"].mean(0, keepdims=True) + noise) ** 2
        return jnp.mean(error), {"mean": jnp.mean(params["colour"])}

    return stages.Stage(domains, lambda key: {"colour": jax.random.normal(key, (width, 3))}, loss)


@pytest.fixture
def toy(monkeypatch, on_devices):
    monkeypatch.setattr(stages, "score", one_colour)
    on_devices(1)


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


def test_a_changed_network_does_not_pass_for_the_old_one(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=2), tmp_path, "score")
    wider = tiny(train__steps=4, score__channels=64)
    expected = (
        r"checkpoints/score/2 does not fit the config in 1 parameters \(colour: saved "
        r"\(32, 3\), config asks for \(64, 3\)\); use the config it was trained with"
    )
    with pytest.raises(ValueError, match="config.score.channels is 64, the weights have 32"):
        loop.train_stage(wider, tmp_path, "score")
    shapes = {"colour": jax.ShapeDtypeStruct((64, 3), jnp.float32)}
    with pytest.raises(ValueError, match=expected):
        checkpoint.open_ema(tmp_path, "score", shapes)
    with pytest.raises(ValueError, match="no checkpoint of 'encoder' under .*checkpoints/encoder"):
        checkpoint.open_ema(tmp_path, "encoder", shapes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"score__prediction": "eps"}, "config.score.prediction is eps, the weights have v"),
        ({"sde__schedule": "cosine"}, "config.sde.schedule is cosine, the weights have linear"),
        ({"sde__num_steps": 500, "sample__start": 400}, "config.sde.num_steps is 500"),
        ({"score__group_channels": 2}, "config.score.group_channels is 2, the weights have 4"),
        ({"score__num_head_channels": 16}, "config.score.num_head_channels is 16"),
        ({"score__attention_resolutions": (16,)}, "config.score.attention_resolutions is [16]"),
        ({"score__use_scale_shift_norm": False}, "config.score.use_scale_shift_norm is False"),
        ({"data__image_size": 32}, "config.data.image_size is 32, the weights have 16"),
        ({"data__source": "yellow", "data__target": "blue"}, "blue, the weights have yellow"),
    ],
)
def test_training_does_not_go_on_from_another_ones_weights(toy, tiny, tmp_path, changes, named):
    loop.train_stage(tiny(train__steps=1), tmp_path, "score")
    with pytest.raises(ValueError) as error:
        loop.train_stage(tiny(train__steps=2, **changes), tmp_path, "score")
    assert named in str(error.value) and "checkpoints/score/1" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_change_a_networks_meaning_may_change(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=1), tmp_path, "score")
    free = {"score__dropout": 0.1, "train__batch_size": 16, "data__flip": False, "method": "egsde"}
    assert int(loop.train_stage(tiny(train__steps=2, **free), tmp_path, "score").step) == 2
    # Another domain is a new training, from the weights of the old one.
    other = {"data__source": "yellow", "data__target": "blue", "train__fine_tune": True}
    moved = tiny(train__steps=1, train__stage="score", **other)
    with pytest.raises(ValueError, match="the weights have yellow"):
        loop.train_stage(moved, tmp_path, "score")


def damaged(value):
    return lambda tree: jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value), tree)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training_does_not_go_on_from_a_damaged_checkpoint(toy, tiny, tmp_path, monkeypatch, value):
    real = checkpoint.save

    def breaks(m, step, rest, ema, config):
        real(m, step, rest, damaged(value)(ema) if step == 4 else ema, config)

    monkeypatch.setattr(checkpoint, "save", breaks)
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    monkeypatch.setattr(checkpoint, "save", real)
    with pytest.raises(ValueError, match=r"score/4 is damaged: 1 .*ema/colour.* on from step 2"):
        loop.train_stage(tiny(train__steps=8), tmp_path, "score")
    shutil.rmtree(tmp_path / "checkpoints" / "score" / "4")
    assert int(loop.train_stage(tiny(train__steps=8), tmp_path, "score").step) == 8


def test_a_good_checkpoint_is_not_pruned_for_a_bad_one(toy, tiny, tmp_path, monkeypatch):
    """The averages are in no loss: they may be bad while all that is reported is good."""
    config = tiny(train__steps=6, train__keep=1)
    real = state.advance

    def advance(*arguments):
        new = real(*arguments)
        bad = jax.tree.map(lambda x: jnp.where(new.step >= 3, jnp.nan, x), new.ema)
        return new._replace(ema=bad)

    monkeypatch.setattr(state, "advance", advance)
    with pytest.raises(loop.NonFiniteLoss, match=r"at step 4 \(first: ema/colour\); the checkp"):
        loop.train_stage(config, tmp_path, "score")
    assert checkpoint.latest_step(tmp_path, "score") == 2
    shapes = {"colour": jax.ShapeDtypeStruct((config.score.channels, 3), jnp.float32)}
    assert np.isfinite(checkpoint.open_ema(tmp_path, "score", shapes)["colour"]).all()


def test_what_a_kill_in_the_middle_of_a_save_leaves_is_no_checkpoint(toy, tiny, tmp_path):
    steady = {"train__score__schedule": "constant"}  # does not depend on the last step
    loop.train_stage(tiny(train__steps=4, **steady), tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    unfinished = folder / "6.orbax-checkpoint-tmp-1700000000"
    (unfinished / "ema").mkdir(parents=True)
    # An old one that was being deleted.
    for path in sorted((folder / "2" / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert checkpoint.latest_step(tmp_path, "score") == 4
    longer = tiny(train__steps=8, **steady)
    again = loop.train_stage(longer, tmp_path, "score")
    assert int(again.step) == 8 and checkpoint.latest_step(tmp_path, "score") == 8
    assert_same_bits(again, loop.train_stage(longer, tmp_path / "whole", "score"))


# What damages the newest checkpoint, and what is said of it.
DAMAGE = {
    "nothing in it": (".", "4/_CHECKPOINT_METADATA is missing"),
    "no state": ("state", "state/ is missing"),
    "no averages": ("ema", "ema/ is missing"),
    "arrays cut short": ("state/d/*", "the arrays of state/ cannot be read"),
    "averages cut short": ("ema/d/*", "the arrays of ema/ cannot be read"),
    "manifest gone": ("ema/manifest.ocdbt", "ema/ has 0 of its 1 arrays"),
    "names cut short": ("state/_METADATA", "state/_METADATA is damaged"),
    "no config": ("config", "config/metadata is missing"),
    "config cut short": ("config/metadata", "config/metadata is damaged"),
}
# Configs of another shape, as JSON.
ODD = ("", "[]", '{"data": 5}', '{"score": [1]}', '{"data": {"source": 3, "target": null}}',
       '{"data": {"domains": 5}}', '{"score": {"published": 1}}')  # fmt: skip


def damage(folder, pattern: str) -> None:
    """Empties or deletes what matches: a folder, a manifest; other files are cut in half."""
    for path in list(folder.glob(pattern)) if pattern != "." else [folder]:
        if path.is_dir():
            shutil.rmtree(path)
            if pattern == ".":
                path.mkdir()
        elif path.name.startswith("manifest"):
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def warned(monkeypatch):
    """What is logged as a warning, as texts."""
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said


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


@pytest.mark.parametrize("what", DAMAGE)
def test_a_broken_checkpoint_is_named_and_the_one_before_goes_on(
    toy, tiny, tmp_path, warned, capfd, what
):
    config = tiny(method="sdedit", train__steps=4)
    expected = loop.train_stage(config, tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    pattern, reason = DAMAGE[what]
    damage(folder / "4", pattern)
    shapes = {"colour": jax.ShapeDtypeStruct((32, 3), jnp.float32)}
    checkpoint.open_ema(tmp_path, "score", shapes)
    checkpoint.open_ema(tmp_path, "score", shapes)  # says it once
    if "state" not in pattern:  # which sampling does not read
        assert warned == [
            f"the checkpoint {folder}/4 is broken: {reason}",
            "the newest whole checkpoint of score is step 2: it is taken",
        ]
    warned.clear()
    loop.train(config, tmp_path)
    assert warned[0] == f"the checkpoint {folder}/4 is broken: {reason}"
    assert warned[2] == f"{folder}/4 is now {folder}/broken-4" and len(warned) == 3
    assert "Traceback" not in capfd.readouterr().err
    assert_same_bits(loop.train_stage(config, tmp_path, "score"), expected)
    assert [row["step"] for row in rows(tmp_path, "score")] == [1, 2, 3, 4]


def test_a_config_of_another_shape_is_a_broken_checkpoint(toy, tiny, tmp_path, warned):
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    path = folder / "4" / "config" / "metadata"
    for n, text in enumerate(ODD):
        path.write_text(text)
        assert checkpoint.newest_whole(tmp_path, "score") == 2
        assert bool(warned) == (n == 0)
        warned.clear()
        with pytest.raises(ValueError, match="4/config/metadata, .*is missing or damaged") as error:
            checkpoint.saved_config(tmp_path, "score")
        assert "\n" not in str(error.value)
    path.write_text("{}")  # of an earlier version, which says nothing
    assert checkpoint.newest_whole(tmp_path, "score") == 4
    (folder / "4" / "ema" / "_METADATA").write_text('{"tree_metadata": []}')
    assert checkpoint.newest_whole(tmp_path, "score") == 2
    assert warned[0] == f"the checkpoint {folder}/4 is broken: ema/_METADATA is damaged"


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/score"])
def test_a_file_where_checkpoints_should_be_is_named(toy, tiny, tmp_path, place):
    path = tmp_path / "work" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    for call in (
        lambda: loop.train(tiny(method="sdedit"), tmp_path / "work"),
        lambda: resolve.load(tiny(), tmp_path / "work", "score"),
    ):
        with pytest.raises(ValueError, match="is a file, and checkpoints lie in a folder") as error:
            call()
        assert str(error.value).startswith(f"{path} is a file") and "\n" not in str(error.value)


def test_where_every_checkpoint_is_broken_nothing_is_trained_over_them(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    damage(folder / "2", "ema")
    damage(folder / "4", ".")
    shapes = {"colour": jax.ShapeDtypeStruct((32, 3), jnp.float32)}
    for call in (
        lambda: loop.train(tiny(method="sdedit"), tmp_path),
        lambda: checkpoint.open_ema(tmp_path, "score", shapes),
    ):
        with pytest.raises(
            ValueError, match="no checkpoint in .*score is whole .step 4: "
        ) as error:
            call()
        assert "step 2: ema/ is missing" in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]


def interrupted_at(monkeypatch, *batches: int):
    """Ctrl-C while the loop works on these batches."""
    real, count = mesh.put_batch, iter(range(1, 10**6))

    def put(*arguments):
        if next(count) in batches:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(mesh, "put_batch", put)


def test_ctrl_c_ends_a_training_with_a_checkpoint(toy, tiny, tmp_path, monkeypatch, warned):
    config = tiny(method="contrastive_sde", train__steps=9, train__checkpoint_every=100)
    interrupted_at(monkeypatch, 3)
    with pytest.raises(preemption.Preempted, match="Ctrl-C after step 3 of 9; .*score/3") as stop:
        loop.train(config, tmp_path)
    assert stop.value.exit_code == 130
    assert warned == ["Ctrl-C: the work is saved after this step; a second one ends at once"]
    assert checkpoint.latest_step(tmp_path, "score") == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Also in the last step of a network after which another one would be trained.
    interrupted_at(monkeypatch, 9 - 3)
    with pytest.raises(preemption.Preempted, match="after step 9 of 9"):
        loop.train(config, tmp_path)
    assert not (tmp_path / "checkpoints" / "encoder").exists()


def test_ctrl_c_before_the_first_step_and_the_second_one_end_at_once(
    toy, tiny, tmp_path, monkeypatch
):
    for batches in ((1,), (3, 3)):
        with monkeypatch.context() as patch:
            interrupted_at(patch, *batches)
            if len(batches) > 1:
                interrupted_at(patch, batches[0])
            with pytest.raises(KeyboardInterrupt):
                loop.train_stage(tiny(train__checkpoint_every=100), tmp_path, "score")
        assert checkpoint.latest_step(tmp_path, "score") is None


OTHER_OPTIMISERS = {
    "train.score.optimizer": ("adam", "muon"),
    "train.clip_norm": (0.0, 1.0),
    "train.encoder.weight_decay": (0.0, 0.05),
}


@pytest.mark.parametrize("key", OTHER_OPTIMISERS)
def test_another_optimiser_is_named(toy, tiny, tmp_path, monkeypatch, key):
    monkeypatch.setattr(stages, "encoder", lambda config: one_colour(config, ("yellow",)))
    stage = "encoder" if "encoder" in key else "score"
    now, then = OTHER_OPTIMISERS[key]
    loop.train_stage(tiny(train__steps=2, **{key: then}), tmp_path, stage)
    expected = (
        f"{stage}/2 .config.{key} is {now}, and was {then}.; go on with the values it was trained"
    )
    with pytest.raises(ValueError, match=expected) as error:
        loop.train_stage(tiny(train__steps=4, **{key: now}), tmp_path, stage)
    assert "\n" not in str(error.value)
    # What leaves the optimiser's numbers as they are may change.
    changes = {key: then, "train.score.learning_rate": 1e-5, "train.encoder.warmup": 0}
    assert int(loop.train_stage(tiny(train__steps=4, **changes), tmp_path, stage).step) == 4


def test_the_source_domains_score_network_is_a_stage_like_any_other(toy, tiny, tmp_path):
    changes = {"method": "ddib", "sample__solver": "ddim", "train__steps": 2}
    assert loop.pending_stages(tiny(**changes), tmp_path) == ("score", "source_score")
    assert stages.make(tiny(**changes), "source_score").domains == ("blue",)
    assert stages.make(tiny(**changes), "score").domains == ("yellow",)
    loop.train(tiny(**changes), tmp_path)
    assert loop.pending_stages(tiny(**changes), tmp_path) == ()
    assert (tmp_path / "checkpoints" / "source_score" / "2").exists()


def test_two_programs_do_not_train_the_same_network_in_one_folder(toy, tiny, tmp_path):
    config = tiny(train__steps=2)
    with files.alone(checkpoint.stage_folder(tmp_path, "score"), "trains score"):
        with pytest.raises(ValueError, match="another program trains score in .*score; wait") as e:
            loop.train_stage(config, tmp_path, "score")
        assert one_sentence(str(e.value))
        loop.train_stage(config, tmp_path / "elsewhere", "score")
    assert int(loop.train_stage(config, tmp_path, "score").step) == 2
    assert not list((tmp_path / "checkpoints" / "score").glob(".*"))


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
    names = sorted(p.name for p in (tmp_path / "logs" / "score").glob("*.png"))
    assert names == ["sheet_0000002.png", "sheet_0000004.png", "sheet_0000005.png"]
    assert len(made) == 1


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


# --- networks: from weights that are there ---


@pytest.mark.slow
def test_fine_tuning_begins_from_imported_weights(tiny, tmp_path, on_devices):
    on_devices(1)
    still = {"train__score__learning_rate": 1e-9, "train__score__muon_rate": 1e-9}
    changes = {**still, "train__checkpoint_every": 100}
    given = build.score_model(tiny()).init(jax.random.key(7))
    checkpoint.save_imported(tmp_path, "score", given, {})
    with pytest.raises(ValueError, match="imported weights; .*train.fine_tune=True"):
        loop.train_stage(tiny(train__steps=1, **changes), tmp_path, "score")
    changes |= {"train__fine_tune": True, "train__stage": "score"}
    tuned = loop.train_stage(tiny(train__steps=1, **changes), tmp_path, "score")
    assert int(tuned.step) == 1 and distance((tuned.params, tuned.ema), (given, given)) < 1e-6
    # From there on the run's own checkpoints count.
    assert int(loop.train_stage(tiny(train__steps=2, **changes), tmp_path, "score").step) == 2
    with pytest.raises(ValueError, match="needs a trained score network, and there is none"):
        loop.train_stage(tiny(train__steps=1, **changes), tmp_path / "none", "score")


# --- a real kill ---


def in_a_process_of_its_own(workdir, cache, pictures, batches: int | None):
    """Train a score network for 12 steps on one device; the process is killed at a batch."""
    compile_cached(cache)
    real, count = mesh.put_batch, 0

    def put(*arguments):
        nonlocal count
        count += 1
        if count == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    mesh.put_batch = put
    loop.train(killable(pictures), workdir)


def killable(pictures):
    own = {"method": "sdedit", "train.steps": 12, "train.keep": 2}
    data = {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    return load_config(FOLDER, TINY | own | data)


def train_in_a_process(workdir, cache, pictures, batches: int | None = None) -> int:
    """The exit code; a process that is killed at batch number `batches` has -9."""
    # The server has the modules loaded, but no JAX back end yet: each of its children is a process
    # like one that a person starts, only sooner there.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cdsde.train.loop", "cdsde.api"])
    process = context.Process(
        target=in_a_process_of_its_own, args=(workdir, cache, pictures, batches)
    )
    process.start()
    process.join(300)
    return process.exitcode


@pytest.mark.slow
def test_killed_three_times_ends_as_if_never_killed(pictures, tmp_path, on_devices):
    on_devices(1)
    cache, cut, whole = jax.config.jax_compilation_cache_dir, tmp_path / "cut", tmp_path / "whole"
    assert train_in_a_process(whole, cache, pictures) == 0
    for batches in (4, 5, 4):  # right after a checkpoint began to be saved, and between two
        assert train_in_a_process(cut, cache, pictures, batches) == -signal.SIGKILL
    assert 3 <= len(rows(cut, "score")) < 12
    assert train_in_a_process(cut, cache, pictures) == 0
    # Finished runs: the state of the last checkpoint comes back.
    config = killable(pictures)
    expected, got = (loop.train_stage(config, w, "score") for w in (whole, cut))
    assert_same_bits(got, expected)
    assert int(got.step) == 12
    one, same = rows(whole, "score"), rows(cut, "score")
    assert [row["step"] for row in same] == list(range(1, 13))
    assert [row["loss"] for row in same] == [row["loss"] for row in one]
