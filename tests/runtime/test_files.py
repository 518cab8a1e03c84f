"""Files that cannot be written: a sentence, and nothing left behind."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from helpers import one_sentence

from cdsde import data
from cdsde.runtime import cache, files, progress
from cdsde.weights import checkpoint

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def full(monkeypatch):
    """`full(free)`: a disk with so many free bytes, to which nothing can be written."""

    def make(free: int = 0):
        def fails(self, content):
            with self.open("wb") as f:
                f.write(content[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", fails)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(100, 100 - free, free))

    return make


def said(call) -> str:
    with pytest.raises(OSError) as error:
        call()
    assert one_sentence(str(error.value))
    return str(error.value)


def test_a_full_disk_is_a_sentence_with_path_and_bytes(tmp_path, full):
    path = tmp_path / "a.png"
    image = np.zeros((8, 8, 3), np.uint8)
    data.write_png(path, image)
    before = path.read_bytes()
    full(free=12)
    text = said(lambda: data.write_png(path, image))
    assert f"'{path}' cannot be written, because the disk is full: " in text
    assert f"{len(before)} bytes are needed, 12 bytes are free" in text
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]
    for write in (
        lambda: files.write_json(tmp_path / "more" / "a.json", {}),
        lambda: data.tokenizer.save(tmp_path / "more", data.tokenizer.learn(["a cat"], 300)),
        lambda: progress.Writer(tmp_path / "more"),
    ):
        assert "bytes are needed, 12 bytes are free" in said(write)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]


KILLED = """
import os, signal, sys
from pathlib import Path
from cdsde.runtime import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_program_has_left_is_deleted(tmp_path):
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", KILLED, path])
    assert len(os.listdir(tmp_path)) == 1 and not path.exists()
    with files.replacing(tmp_path / "b.txt") as unfinished:  # another thread's is no leftover
        unfinished.write_bytes(b"b")
        files.write_bytes(path, b"a")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_what_else_keeps_a_file_from_being_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    text = said(lambda: files.write_json(tmp_path / "file" / "a.json", {}))
    assert text.startswith(f"'{tmp_path}/file/a.json' cannot be written: there is a file where a")


def test_rows_of_a_log_need_room(tmp_path, full):
    writer = progress.Writer(tmp_path)
    full(free=100)
    assert "metrics.csv' cannot be written" in said(lambda: writer.scalars(1, {"loss": 0.5}))
    writer.close()


def test_a_checkpoint_without_room_is_not_begun(tmp_path, full):
    state = {"x": jnp.ones(1000), "key": jax.random.key(0)}
    with checkpoint.manager(tmp_path, "score") as saved:
        checkpoint.save(saved, 1, state, {"x": jnp.ones(1000)}, {})
        saved.wait_until_finished()
        full(free=8000)
        text = said(lambda: checkpoint.save(saved, 2, state, {"x": jnp.ones(1000)}, {}))
    assert "checkpoints/score/2' cannot be written" in text and "8,000 bytes are free" in text
    assert "270,152 bytes are needed" in text  # 8,008 of arrays
    assert [p.name for p in (tmp_path / "checkpoints" / "score").iterdir()] == ["1"]
    said(lambda: checkpoint.save_imported(tmp_path, "encoder", {"x": jnp.ones(1000)}, {}))
    assert checkpoint.newest_whole(tmp_path, "encoder") is None
    assert checkpoint.newest_whole(tmp_path, "score", training=True) == 1


def test_programs_are_not_kept_on_a_full_disk(tmp_path, full, monkeypatch):
    warnings, updates = [], {}
    monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    full(free=5)
    cache.keep_programs(str(tmp_path))
    assert updates["jax_enable_compilation_cache"] is False
    assert len(warnings) == 1 and "5 free bytes: compiled programs are not kept" in warnings[0]
