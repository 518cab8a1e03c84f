"""Compiled programs: their options on a CPU, and the folder that keeps them."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cdsde.runtime import compiler

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


def test_convolutions_and_sums_are_compiled_by_xla_itself():
    def program(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(y, axis=(1, 2))

    x, kernel = jnp.ones((2, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
    text = compiler.jit(program).lower(x, kernel).compile().as_text()
    assert "convolution(" in text and "ynn_fusion" not in text


def test_programs_are_kept_where_the_config_says(tmp_path, monkeypatch, restored):
    def programs(folder, number):
        jax.clear_caches()
        compilation_cache.reset_cache()
        compiler.jit(lambda x: x * number + 1)(jnp.ones(3)).block_until_ready()
        return list(folder.glob("*")) if folder.exists() else []

    compiler.keep_programs(str(tmp_path / "here"))
    assert programs(tmp_path / "here", 2.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    jax.config.update("jax_compilation_cache_dir", None)
    compiler.keep_programs("auto")
    assert programs(tmp_path / "caches" / "cdsde" / "jax", 3.0)

    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    compiler.keep_programs("auto")
    assert programs(tmp_path / "jax", 4.0)

    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "nowhere"))
    compiler.keep_programs("off")
    assert not programs(tmp_path / "nowhere", 5.0)
