"""Ctrl-C, and a process that is killed."""

import multiprocessing
import os
import signal

import jax
import pytest
from helpers import FOLDER, TINY, compile_cached
from train_helpers import assert_same_bits, rows

from cdsde import load_config
from cdsde.runtime import mesh, preemption
from cdsde.train import loop
from cdsde.weights import checkpoint

pytestmark = pytest.mark.usefixtures("compile_quickly")


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
