"""What is kept for later runs, and where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cdsde.runtime import cache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def restored():
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_where_the_config_says(tmp_path, monkeypatch, restored):
    def programs(folder, number):
        jax.clear_caches()
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * number + 1)(jnp.ones(3)).block_until_ready()
        return list(folder.glob("*")) if folder.exists() else []

    cache.keep_programs("off")
    cache.keep_programs(str(tmp_path / "here"))
    assert programs(tmp_path / "here" / "jax", 2.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    jax.config.update("jax_compilation_cache_dir", None)
    cache.keep_programs("auto")
    assert programs(tmp_path / "caches" / "cdsde" / "jax", 3.0)

    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    cache.keep_programs("auto")
    assert programs(tmp_path / "jax", 4.0)

    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "nowhere"))
    cache.keep_programs("off")
    assert not programs(tmp_path / "nowhere", 5.0)


def test_an_array_is_computed_once_for_what_it_is_made_of(tmp_path):
    made = []

    def compute():
        made.append(1)
        return np.arange(3.0)

    for setting in (str(tmp_path), str(tmp_path), "off"):
        np.testing.assert_array_equal(cache.array(setting, "x", {"a": 1}, compute), np.arange(3))
    assert len(made) == 2
    cache.array(str(tmp_path), "x", {"a": 2}, compute)
    assert len(made) == 3


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert cache.array(str(tmp_path / "file"), "x", {}, lambda: np.ones(2)).sum() == 2


def test_a_file_that_cannot_be_read_is_made_again(tmp_path):
    for junk in (b"", b"not an array"):
        cache.array(str(tmp_path), "x", {}, lambda: np.ones(2))
        (path,) = (tmp_path / "statistics").glob("x-*.npy")
        path.write_bytes(junk)
        assert cache.array(str(tmp_path), "x", {}, lambda: np.ones(2)).sum() == 2
        assert np.load(path).sum() == 2
