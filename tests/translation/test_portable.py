"""A translation out of the house: run without cdsde, equal to what cdsde translates."""

import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from helpers import one_sentence

from cdsde import api, load_config, main
from cdsde import config as config_lib
from cdsde.data import image_id, to_uint8
from cdsde.networks import build
from cdsde.translation import compiled, portable
from cdsde.weights import adoption, resolve, stablehlo

pytest.importorskip("flatbuffers")
from jax import export  # noqa: E402

PROGRAM = textwrap.dedent(re.search(r"\n\n((?:    .*\n|\n)+)", stablehlo.__doc__)[1])
ALONE = "import sys\nsys.modules['cdsde'] = None\n"  # importing it fails


CHANGES = {
    "sddm": {"sddm__blocks": 4, "sddm__until": 100, "sddm__energy": "egsde", "sddm__factor": 4}
}


def pictures(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), np.uint8)


def exported(config, folder):
    config.export.format = "stablehlo"
    config.export.path = str(folder / "translation.npz")
    return portable.export_translation(config, folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdedit", "cut"])
def test_a_program_of_jax_alone_translates_as_cdsde_does(method, task, tmp_path):
    """The ten lines of the docstring, in a process that cannot import this package."""
    config = task(method, sample__steps=2)
    exported(config, tmp_path)
    np.save(tmp_path / "images.npy", pictures(3))
    command = [sys.executable, "-I", "-c", ALONE + PROGRAM]
    subprocess.run(command, cwd=tmp_path, check=True)
    results = np.load(tmp_path / "results.npy")
    assert results.dtype == np.uint8
    np.testing.assert_array_equal(results, api.translate(config, pictures(3), workdir=tmp_path))


def equal(config, folder, counts):
    """Whether the exported translation makes the same pictures, of any number."""
    file = np.load(exported(adoption.adopted(config, folder), folder))
    function = export.deserialize(bytearray(file["function/cpu"]))
    arrays = {name: file[name] for name in file.files if name.startswith("array/")}
    translate = jax.jit(function.call, compiler_options=dict(file["options/cpu"].tolist()))
    for count in counts:
        images = pictures(count, config.data.image_size)
        ids = np.array([image_id(str(j)) for j in range(count)], np.uint32)
        for seed in (0, 5):
            config.sample.seed = seed
            found = translate(arrays, images, ids, np.uint32(seed))
            np.testing.assert_array_equal(found, api.translate(config, images, workdir=folder))


@pytest.mark.slow
@pytest.mark.parametrize("method", [*config_lib.SDES, "cut"])
def test_every_method_and_batch(method, task, tmp_path):
    equal(task(method, sample__steps=3, **CHANGES.get(method, {})), tmp_path, (1, 3))


@pytest.mark.slow
def test_the_shipped_task(tmp_path):
    equal(load_config("twemoji2fluent", {"sample.steps": 3}), tmp_path, (2,))


# Published score networks of every architecture, and the class that they are asked for.
PUBLISHED = {
    "guided_diffusion/ema_0.9999_010000.pt": 1,
    "diffusers/a_ddpm_root": None,
    "edm/ddpmpp_vp.pkl": None,
    "edm/adm_edm_cond.pkl": 2,
    "score_sde/ncsnpp_ve.pth": None,
    "dit/0050000.pt": 3,
}


@pytest.fixture
def published(tiny, golden):
    """`published(name)`: the task with a file of the vectors as its score network."""

    def make(name):
        file = {"weights__score": str(golden / "pixel" / name), "score__label": PUBLISHED[name]}
        return tiny(method="sdedit", sample__start=300, **file)

    return make


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_takes_a_batch_of_any_size(name, published, tmp_path):
    config = adoption.adopted(published(name), tmp_path)
    (batch,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 16, 16, 3), np.float32)
    network = build.score_model(config)
    out = jax.eval_shape(network.apply, resolve.shapes(config, "score"), x, 300)
    assert out.shape == x.shape


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_goes_out_as_it_is(name, published, tmp_path):
    equal(published(name), tmp_path, (1, 3))


def test_the_file_has_every_platform_and_each_array_once(task, tmp_path):
    config = task("cut")
    assert portable.export_translation(config, tmp_path) == tmp_path / "export" / "cut.npz"
    file = np.load(tmp_path / "export" / "cut.npz")
    assert {n for n in file.files if not n.startswith("array/")} == {
        f"{part}/{platform}"
        for part in ("function", "options")
        for platform in ("cpu", "cuda", "tpu")
    }
    for platform in ("cpu", "cuda", "tpu"):
        function = export.deserialize(bytearray(file[f"function/{platform}"]))
        assert function.platforms == (platform,)
        assert [str(x) for x in function.in_avals[-3:]] == [
            "uint8[b,16,16,3]", "uint32[b]", "uint32[]"
        ]  # fmt: skip
        assert str(function.out_avals[0]) == "uint8[b,16,16,3]"
    held = sum(file[name].size for name in file.files if name.startswith("array/"))
    assert held == sum(x.size for x in jax.tree.leaves(compiled.load_params(config, tmp_path)[0]))


def test_values_become_levels_as_pictures_do():
    first = stablehlo.first_of_each_level()
    below = np.nextafter(first, np.float32(-9))
    random = np.random.default_rng(0).uniform(-1.2, 1.2, 10**5).astype(np.float32)
    y = np.concatenate([first, below, random, np.float32([-np.inf, -1, 0, 1, np.inf])])
    found = np.searchsorted(first, y, side="right")
    np.testing.assert_array_equal(found, to_uint8(y.reshape(-1, 1, 1)).ravel())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "ddim"}, "edits by words; only translations are written"),
        ({"export__stage": "encoder"}, "takes all networks of config.method; leave the stage out"),
        ({"sample__keep_size": True}, "keep_size is True"),
        ({"export__path": "x.safetensors"}, "x.safetensors must end in .npz"),
    ],
)
def test_what_cannot_be_exported_is_told(changes, told, task, tmp_path):
    config = task(**{"method": "cut", "export__format": "stablehlo", **changes})
    with pytest.raises(ValueError, match=told) as error:
        portable.export_translation(config, tmp_path)
    assert one_sentence(str(error.value))
    assert main._program("export", config) is portable.export_translation


def test_the_missing_package_is_told(task, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match="pip install 'cdsde\\[export\\]'"):
        portable.export_translation(task("cut"), tmp_path)
