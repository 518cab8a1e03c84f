"""Training: one step, the loop around it, what a kill leaves behind, one device or eight."""

import csv
import math
import multiprocessing
import random
import struct
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FOLDER, TINY, compile_cached

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.networks import build
from cdsde.runtime import mesh, progress
from cdsde.train import loop, previews, stages, state
from cdsde.weights import checkpoint

pytestmark = pytest.mark.usefixtures("compile_quickly")


def rows(workdir, stage: str) -> list[dict[str, float]]:
    with (Path(workdir) / "logs" / stage / "metrics.csv").open(newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), str(path))


def distance(a, b) -> float:
    """‖a - b‖ / ‖b‖ over all leaves."""
    a, b = (np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(t)])
            for t in (a, b))  # fmt: skip
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# --- one step ---


def settings(**changes):
    """`config.train.score` with plain gradient descent's absence of surprises: no warm-up."""
    c = config_lib.stage_training(load_config(FOLDER), "score")
    plain = {"optimizer": "adam", "warmup": 0, "schedule": "constant"}
    c.update({**plain, "learning_rate": 0.1, "steps": 100, **changes})
    return c


def line(params, batch, key):
    """A straight line through points, a loss without randomness; `seen` is a metric."""
    error = batch["x"] @ params["kernel"] + params["bias"][None] - batch["y"]
    return jnp.mean(error**2), {"seen": jnp.mean(batch["y"])}


def line_start(key):
    return {"kernel": jax.random.normal(key, (3, 1)), "bias": jnp.ones(1)}


def points(count: int = 8):
    r = np.random.default_rng(1)
    return {"x": r.normal(size=(count, 3)), "y": r.normal(size=(count, 1))}


def run_steps(c, count: int = 1, loss=line, batch=None):
    tx = state.optimiser(c)
    step = jax.jit(state.make_step(loss, tx, c))
    states, metrics = [state.init_state(line_start, tx, 0)], None
    for _ in range(count):
        new, metrics = step(states[-1], points() if batch is None else batch)
        states.append(new)
    return states, metrics


def test_steps_bring_the_loss_down_and_count():
    states, metrics = run_steps(settings(), 60)
    first = run_steps(settings())[1]
    assert int(states[-1].step) == 60
    assert metrics["loss"] < 0.5 * first["loss"]
    assert set(metrics) == {"loss", "gradient_norm", "seen"}


def test_accumulation_equals_the_whole_batch():
    (*_, whole), metrics = run_steps(settings(accumulate=1), 5)
    (*_, parts), others = run_steps(settings(accumulate=4), 5)
    np.testing.assert_allclose(parts.params["kernel"], whole.params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(parts.ema["bias"], whole.ema["bias"], rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def draw(params, batch, key):
    value = jax.random.normal(key)
    return params["bias"].sum(), {"value": value, "square": value**2}


def test_every_step_and_micro_batch_draws_anew():
    drawn = {float(run_steps(settings(), n, draw)[1]["value"]) for n in (1, 2, 3)}
    assert len(drawn) == 3
    # The mean of the squares is the square of the mean only if all draws are the same.
    metrics = run_steps(settings(accumulate=4), 1, draw)[1]
    assert metrics["square"] > metrics["value"] ** 2 + 1e-3


def test_clipping_limits_the_gradient_but_not_the_report():
    # Adam divides the length out; its first moment keeps it.
    (*_, clipped), metrics = run_steps(settings(clip_norm=1e-3))
    (*_, free), _ = run_steps(settings(clip_norm=0.0))
    first, other = (
        jax.tree.leaves([x.mu for x in jax.tree.leaves(s.opt_state, is_leaf=has_mu) if has_mu(x)])
        for s in (clipped, free)
    )
    assert np.isclose(np.linalg.norm(np.concatenate([np.ravel(x) for x in first])), 1e-4, 1e-3)
    assert metrics["gradient_norm"] > 0.1
    assert np.linalg.norm(np.concatenate([np.ravel(x) for x in other])) > 0.01


def has_mu(x) -> bool:
    return hasattr(x, "mu")


def test_the_average_follows_closely_first_and_slowly_then():
    states, _ = run_steps(settings(ema=0.5), 40)
    start, first = states[0].params["kernel"], states[1]
    np.testing.assert_allclose(states[0].ema["kernel"], start)
    # Nine tenths of the way at the first step, half of it once `ema` is the smaller decay.
    np.testing.assert_allclose(
        first.ema["kernel"], 0.1 * start + 0.9 * first.params["kernel"], rtol=1e-6
    )
    before, last = states[-2:]
    half = (before.ema["kernel"] + last.params["kernel"]) / 2
    np.testing.assert_allclose(last.ema["kernel"], half, rtol=1e-6)


def test_learning_rate_warms_up_and_ends():
    c = settings(warmup=10, learning_rate=2e-3)
    constant = state.learning_rate(c)
    assert [float(constant(n)) for n in (0, 5, 10, 99)] == pytest.approx([0, 1e-3, 2e-3, 2e-3])
    cosine = state.learning_rate(settings(warmup=10, learning_rate=2e-3, schedule="cosine"))
    assert [float(cosine(n)) for n in (0, 5, 10, 55, 100)] == pytest.approx(
        [0, 1e-3, 2e-3, 1e-3, 0], abs=1e-9
    )
    assert float(state.learning_rate(settings(warmup=0))(0)) == pytest.approx(0.1)
    # A run of a few steps is not all warm-up.
    short = state.learning_rate(settings(warmup=500, steps=8, learning_rate=2e-3))
    assert float(short(4)) == pytest.approx(2e-3)


def test_weight_decay_takes_kernels_and_leaves_biases():
    def flat(params, batch, key):
        return 0.0 * params["kernel"].sum() + 0.0 * params["bias"].sum(), {}

    start, end = run_steps(settings(weight_decay=0.05, learning_rate=0.1), 1, flat)[0]
    np.testing.assert_allclose(end.params["kernel"], start.params["kernel"] * 0.995, rtol=1e-5)
    np.testing.assert_array_equal(end.params["bias"], start.params["bias"])
    start, end = run_steps(settings(weight_decay=0.0), 1, flat)[0]
    np.testing.assert_array_equal(end.params["kernel"], start.params["kernel"])


def test_muon_makes_kernels_steps_orthogonal_and_leaves_vectors_to_adam():
    def start(key):
        keys = jax.random.split(key)
        return {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8)), "bias": jnp.ones(8)}

    def slope(params, batch, key):
        r = np.random.default_rng(0)
        kernel = jnp.asarray(r.normal(size=(3, 3, 4, 8)), jnp.float32)
        return jnp.sum(kernel * params["kernel"]) + 5.0 * params["bias"].sum(), {}

    c = settings(optimizer="muon", muon_rate=0.5, learning_rate=0.01)
    tx = state.optimiser(c)
    before = state.init_state(start, tx, 0)
    after, _ = jax.jit(state.make_step(slope, tx, c))(before, points())
    moved = np.asarray(after.params["kernel"] - before.params["kernel"]).reshape(36, 8)
    values = np.linalg.svd(moved, compute_uv=False)
    # Newton and Schulz's five iterations bring the singular values near to 1, not to it.
    assert np.all((0.3 < values) & (values < 0.65))
    adam = np.asarray(after.params["bias"] - before.params["bias"])
    # Whatever the slope, 5 here; Nesterov's momentum looks half a step ahead.
    assert np.all((-0.016 < adam) & (adam < -0.009))


def test_a_seed_makes_the_start():
    tx = state.optimiser(settings())
    one, same, other = (state.init_state(line_start, tx, seed) for seed in (1, 1, 2))
    assert_same_bits(one, same)
    assert not np.array_equal(one.params["kernel"], other.params["kernel"])
    assert not np.array_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))


# --- the loop, around a network of one colour ---


def one_colour(config) -> stages.Stage:
    """Learns the mean colour of the target's pictures; a draw joins in, so that keys matter."""
    width = config.score.channels

    def loss(params, batch, key):
        x = batch["image"].astype(jnp.float32) / 255
        noise = 0.1 * jax.random.normal(key, (1, 3))
        error = (x.mean((1, 2)) - params["colour"].mean(0, keepdims=True) + noise) ** 2
        return jnp.mean(error), {"mean": jnp.mean(params["colour"])}

    return stages.Stage(
        (config.data.target,), lambda key: {"colour": jax.random.normal(key, (width, 3))}, loss
    )


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
    assert [row["step"] for row in rows(tmp_path / "cut", "score")] == [1, 2, 3, 4, 5, 6, 7]
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
    with pytest.raises(ValueError, match=expected):
        loop.train_stage(wider, tmp_path, "score")
    shapes = {"colour": jax.ShapeDtypeStruct((64, 3), jnp.float32)}
    with pytest.raises(ValueError, match=expected):
        checkpoint.open_ema(tmp_path, "score", shapes)
    with pytest.raises(ValueError, match="no checkpoint of 'encoder' under .*checkpoints/encoder"):
        checkpoint.open_ema(tmp_path, "encoder", shapes)


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


# --- networks: one device or eight ---


@pytest.mark.slow
def test_one_device_and_eight_train_the_same_score_network(tiny, tmp_path, on_devices):
    finals, split = [], []
    for devices, fsdp in ((1, 1), (8, 1), (8, 4)):
        on_devices(devices)
        config = tiny(
            train__steps=4,
            train__checkpoint_every=100,
            mesh__fsdp=fsdp,
        )
        final = loop.train_stage(config, tmp_path / f"{devices}{fsdp}", "score")
        assert final.step.sharding.device_set == set(jax.devices()[:devices])
        # What a device holds of everything that the optimiser keeps.
        held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(final))
        split.append(held / sum(x.size for x in jax.tree.leaves(final)))
        finals.append(jax.tree.map(np.asarray, (final.params, final.ema)))
    assert split[:2] == [1, 1] and split[2] < 0.6
    assert distance(*finals[:2]) < 1e-5 and distance(*finals[1:]) < 1e-5
    one, eight, shared = (rows(tmp_path / name, "score") for name in ("11", "81", "84"))
    for other in (eight, shared):
        assert [row["loss"] for row in other] == pytest.approx([x["loss"] for x in one], rel=1e-5)
    # What eight devices began, one goes on with, and the other way round.
    for folder, devices, fsdp in (("84", 1, 1), ("11", 8, 4)):
        on_devices(devices)
        longer = tiny(train__steps=6, train__checkpoint_every=100, mesh__fsdp=fsdp)
        assert int(loop.train_stage(longer, tmp_path / folder, "score").step) == 6


def test_a_mesh_that_does_not_fit_the_devices(tiny, tmp_path, on_devices):
    on_devices(8)
    with pytest.raises(ValueError, match="mesh.fsdp is 3, which does not divide the 8 devices"):
        loop.train_stage(tiny(mesh__fsdp=3), tmp_path, "score")


@pytest.mark.slow
def test_one_device_and_eight_train_the_same_encoder_and_it_learns(tiny, tmp_path, on_devices):
    # Negatives come from the whole batch, whichever device they lie on: devices that looked at
    # their own two images alone would have another loss than the one that sees all sixteen.
    changes = {
        "train__batch_size": 16,
        "train__checkpoint_every": 100,
        "train__encoder__max_index": 100,
        "train__encoder__learning_rate": 1e-3,
        "train__encoder__schedule": "constant",
        # With 32 channels each is a group of its own in GroupNorm, a bias before it has no gradient
        # but rounding errors, and Adam makes whole steps of these.
        "encoder__channels": 64,
    }
    finals = []
    for devices in (8, 1):
        on_devices(devices)
        final = loop.train_stage(
            tiny(train__steps=6, **changes), tmp_path / str(devices), "encoder"
        )
        finals.append((final.params, final.ema))
    assert distance(*finals) < 1e-5
    one, eight = (rows(tmp_path / devices, "encoder") for devices in "18")
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in eight], rel=1e-5)
    loop.train_stage(tiny(train__steps=36, **changes), tmp_path / "8", "encoder")
    losses = [row["loss"] for row in rows(tmp_path / "8", "encoder")]
    assert len(losses) == 36 and np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_the_classifier_learns_two_colours(tiny, tmp_path, on_devices):
    on_devices(1)
    config = tiny(
        train__steps=36,
        train__batch_size=16,
        train__checkpoint_every=100,
        train__classifier__learning_rate=1e-2,
        train__classifier__schedule="constant",
    )
    loop.train_stage(config, tmp_path, "classifier")
    table = rows(tmp_path, "classifier")
    assert table[0]["loss"] == pytest.approx(math.log(2), rel=0.05)
    assert np.mean([row["loss"] for row in table[-5:]]) < 0.4
    assert np.mean([row["accuracy"] for row in table[-5:]]) > 0.9


# --- a real kill ---


def in_a_process_of_its_own(workdir, cache, pictures, pause: float):
    """Train a score network for 12 steps on one device, each `pause` seconds long at least."""
    compile_cached(cache)
    real = mesh.put_batch

    def put(*arguments):
        time.sleep(pause)
        return real(*arguments)

    mesh.put_batch = put
    loop.train(killable(pictures), workdir)


def killable(pictures):
    own = {"method": "sdedit", "train.steps": 12, "train.keep": 2}
    data = {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
    return load_config(FOLDER, TINY | own | data)


def start(workdir, cache, pictures, pause: float = 0.0):
    # The server has the modules loaded, but no JAX back end yet: each of its children is a process
    # like one that a person starts, only sooner there.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cdsde.train.loop", "cdsde.api"])
    process = context.Process(
        target=in_a_process_of_its_own, args=(workdir, cache, pictures, pause)
    )
    process.start()
    return process


def everything_saved(pictures, workdir):
    """State and average of the last checkpoint, as host arrays."""
    config = killable(pictures)
    c = config_lib.stage_training(config, "score")
    stage, tx = stages.score(config), state.optimiser(c)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one),
        jax.eval_shape(lambda: state.init_state(stage.init, tx, 0)),
    )
    with checkpoint.manager(workdir, "score") as m:
        return checkpoint.restore(m, *loop._parts(shapes))


@pytest.mark.slow
def test_killed_three_times_ends_as_if_never_killed(pictures, tmp_path):
    cache, cut, whole = jax.config.jax_compilation_cache_dir, tmp_path / "cut", tmp_path / "whole"
    process = start(whole, cache, pictures)
    process.join(300)
    assert process.exitcode == 0
    moments = random.Random()
    for at_least in (2, 5, 8):
        process = start(cut, cache, pictures, pause=0.1)
        while process.is_alive() and steps_logged(cut) < at_least:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it was over before it could be killed"
    assert at_least <= steps_logged(cut) < 12
    process = start(cut, cache, pictures)
    process.join(300)
    assert process.exitcode == 0
    expected, got = (everything_saved(pictures, w) for w in (whole, cut))
    assert_same_bits(got, expected)
    assert int(got[0]["step"]) == 12
    one, same = rows(whole, "score"), rows(cut, "score")
    assert [row["step"] for row in same] == list(range(1, 13))
    assert [row["loss"] for row in same] == [row["loss"] for row in one]


def steps_logged(workdir) -> int:
    path = workdir / "logs" / "score" / "metrics.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


# --- which levels the score network is trained on ---


def test_levels_are_drawn_uniformly_or_normally_in_log_snr(tiny):
    schedule = build.schedule_of(tiny())
    training = config_lib.stage_training(tiny(), "score")
    training.levels = "index"
    np.testing.assert_allclose(stages.level_shares(schedule, training), np.full(1000, 1e-3))
    training.update(levels="log_snr", log_snr_mean=1.0, log_snr_std=2.0)
    shares = stages.level_shares(schedule, training)
    assert shares.sum() == pytest.approx(1) and shares.min() >= 0
    alpha_bar = schedule.alpha_bar.astype(float)
    log_snr = np.log(alpha_bar / (1 - alpha_bar))
    assert shares @ log_snr == pytest.approx(1.0, abs=0.02)
    assert np.sqrt(shares @ (log_snr - 1) ** 2) == pytest.approx(2.0, abs=0.05)

    draw = jax.jit(lambda key: stages.draw_levels(key, shares, 50))
    drawn = np.concatenate([draw(jax.random.key(k)) for k in range(200)])
    seen = np.bincount(drawn, minlength=1000)
    for low, high in ((0, 100), (100, 300), (300, 600), (600, 1000)):
        expected = shares[low:high].sum()
        assert seen[low:high].sum() / len(drawn) == pytest.approx(expected, abs=0.01)
