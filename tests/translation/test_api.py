"""cdsde from Python."""

import re

import jax
import numpy as np
import pytest
from helpers import one_sentence, random_params
from sampling_helpers import results

from cdsde import api, load_sampler
from cdsde.data import decode, image_id, resize
from cdsde.runtime import mesh
from cdsde.translation import run as translation_run
from cdsde.translation.compiled import Sampler
from cdsde.weights import checkpoint

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_python_and_the_command_line_make_the_same_picture(task, five, tmp_path):
    config = task(sample__input=five)
    by_name = results(translation_run.sample(config, tmp_path))
    paths = [five / name for name in ("b.jpg", "e.PNG", "a.png", "d.webp", "ç 1.png")]
    expected = np.stack([by_name[f"{p.stem}.png"] for p in paths])
    made = api.translate(config, paths)
    assert made.dtype == np.uint8 and made.shape == (len(paths), 16, 16, 3)
    np.testing.assert_allclose(made, expected, atol=1)
    # Any order, in small batches, from bytes or pixels that are given their names.
    names = [p.name for p in paths]
    sampler, _ = load_sampler(config, ".")
    config.sample.batch_size = 2
    for images in ([p.read_bytes() for p in paths], [decode(p) for p in paths]):
        again = api.translate(config, images[::-1], names=names[::-1], sampler=sampler)[::-1]
        np.testing.assert_allclose(again, expected, atol=1)
    # Without names, the position is one.
    pixels = np.stack([resize(decode(p), 16) for p in paths])
    unnamed = api.translate(config, pixels, sampler=sampler)
    numbered = api.translate(config, pixels, names=list("01234"), sampler=sampler)
    np.testing.assert_array_equal(unnamed, numbered)
    assert (unnamed != expected).any()


def test_checkpoints_of_the_work_folder_come_before_named_weights(task, five, tmp_path):
    config = task()
    params = random_params(config, "score", seed=7)
    checkpoint.save_imported(tmp_path, "score", params, {})
    path = five / "a.png"
    own = api.translate(config, [path], workdir=tmp_path)
    expected = Sampler(config, {"score": params})(
        resize(decode(path), 16)[None], np.array([image_id("a.png")], np.uint32)
    )
    np.testing.assert_array_equal(own, expected)
    assert (own != api.translate(config, [path], workdir=tmp_path / "none")).any()
    _, where = load_sampler(config, tmp_path)
    assert "checkpoints/score/0 (sha256 " in where["score"]


def test_a_sampler_goes_over_this_process_s_devices(task, on_devices):
    on_devices(8)
    config = task()
    sampler = Sampler(config, {"score": random_params(config, "score")})
    assert sampler.devices.size == 8
    for leaf in jax.tree.leaves(sampler.params):
        assert leaf.sharding == mesh.replicated(sampler.devices)


SET = [
    ("seed", 2**32, "config.sample.seed is 4294967296; it must be "),
    ("rounds", 0, "config.sample.rounds is 0; it must be at least 1"),
    ("eta", 5.0, "config.sample.eta is 5.0; it must be "),
    ("start", 5000, "config.sample.start is 5000; it must lie in 1..1000"),
    ("solver", "nope", "config.sample.solver is 'nope'; choose one of "),
    ("batch_size", 0, "config.sample.batch_size is 0; it must be at least 1"),
]


@pytest.mark.parametrize("key, value, wanted", SET, ids=lambda x: str(x))
def test_values_set_after_loading_are_looked_at(key, value, wanted, task):
    config = task()
    sampler = Sampler(config, {"score": {}})
    config.sample[key] = value
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    for call in (
        lambda: api.translate(config, pixels),
        lambda: api.translate(config, pixels, sampler=sampler),
        lambda: load_sampler(config, "."),
        lambda: sampler.update(config),
    ):
        with pytest.raises(ValueError, match=re.escape(wanted)) as error:
            call()
        assert one_sentence(str(error.value))


def test_a_sampler_takes_over_what_a_config_changes(task, five):
    config, path = task(), five / "a.png"
    sampler, _ = load_sampler(config, ".")
    first = api.translate(config, [path], sampler=sampler)
    for key, value in (("sample.seed", 5), ("sample.start", 3)):
        config = task(**{key.replace(".", "__"): value})
        again = api.translate(config, [path], sampler=sampler)
        np.testing.assert_array_equal(again, api.translate(config, [path]))
        assert (again != first).any()
    with pytest.raises(ValueError, match="config.sample.clip was .* make a new one"):
        api.translate(task(sample__clip=not config.sample.clip), [path], sampler=sampler)


@pytest.mark.slow
def test_a_published_network_serves_at_a_pictures_own_size_and_again(tiny, five, golden):
    file = {"weights__score": str(golden / "pixel" / "diffusers" / "a_ddpm_root")}
    config = tiny(method="sdedit", sample__start=300, sample__keep_size=True, **file)
    (whole,) = api.translate(config, [five / "a.png"])
    assert whole.shape == (16, 20, 3)
    config.sample.keep_size = False
    sampler, _ = load_sampler(config, ".")
    first = api.translate(config, [five / "a.png"], sampler=sampler)
    config.sample.seed = 4
    assert (api.translate(config, [five / "a.png"], sampler=sampler) != first).any()
