"""Test set-up: 8 virtual CPU devices, strict rank promotion, absl flags marked as parsed."""

import signal

import jax
import numpy as np
import pytest
from absl import flags
from helpers import FOLDER, TINY, compile_cached
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from cdsde import load_config
from cdsde.runtime import mesh

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs that the tests start hear Ctrl-C, also where a shell runs the tests in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Loaders with worker processes refuse to start before flags are parsed.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session", autouse=True)
def no_results_of_earlier_runs(tmp_path_factory):
    """What the code keeps for later runs must not hide a fault from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def golden():
    """The folder of reference vectors."""
    from pathlib import Path

    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory):
    """A folder of compiled programs for this run of the tests, or the one that JAX is told of."""
    return jax.config.jax_compilation_cache_dir or str(tmp_path_factory.mktemp("jax"))


@pytest.fixture(scope="module")
def compile_quickly(compiled_programs):
    """For tests about what is computed; compiling for speed would take most of their time."""
    given, least = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    compile_cached(compiled_programs)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", given)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of somebody's pictures: blue ones and yellow ones, a dozen each."""
    root = tmp_path_factory.mktemp("pictures")
    r = np.random.default_rng(0)
    for domain, colour in (("blue", (40, 80, 220)), ("yellow", (230, 200, 60))):
        for split, count in (("train", 12), ("val", 3)):
            folder = root / split / domain
            folder.mkdir(parents=True)
            for n in range(count):
                coarse = r.normal(colour, 25, (4, 5, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(coarse).resize((25, 20)).save(folder / f"{n}.png")
    return root


@pytest.fixture
def tiny(pictures):
    """`tiny(data__root=..., ...)`: the config of a tiny task on `pictures`."""

    def make(**changes):
        data = {"data.root": pictures, "data.source": "blue", "data.target": "yellow"}
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config(FOLDER, TINY | data | changes)

    return make


@pytest.fixture
def on_devices(monkeypatch):
    """`on_devices(n)`: from now on programs run on n of the 8 virtual devices."""
    real = mesh.make_mesh
    assert len(jax.devices()) == 8

    def use(count):
        chosen = jax.devices()[:count]
        monkeypatch.setattr(mesh, "make_mesh", lambda devices=None, **axes: real(chosen, **axes))

    return use


@pytest.fixture
def exact_products():
    """Products of float32 without shortcuts, for comparisons with published code."""
    with jax.default_matmul_precision("float32"):
        yield
