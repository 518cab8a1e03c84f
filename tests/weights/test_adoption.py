"""Published score networks as a config's: named, imported, translated with, refused."""

import json

import numpy as np
import pytest
from helpers import random_params
from sampling_helpers import batch

from cdsde import load_sampler
from cdsde.data import to_float
from cdsde.networks import build, published
from cdsde.translation import latents
from cdsde.translation.compiled import Sampler
from cdsde.weights import adoption, diffusers, exchange, exported, resolve
from cdsde.weights.formats import registry

# File -> side of its images, class.
FILES = {
    "diffusers/a_ddpm_root": (16, None),
    "diffusers/a_ddpm_root_old": (16, None),
    "diffusers/c_ncsnpp": (16, None),
    "edm/ddpmpp_vp.pkl": (16, None),
    "edm/adm_edm_cond.pkl": (16, 2),
    "score_sde/ncsnpp_ve.pth": (16, None),
    "guided_diffusion/ema_0.9999_010000.pt": (16, 1),
    "dit/0050000.pt": (16, 3),
}
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def task_of(golden, tiny):
    """`task_of(name, **changes)`: a task whose score network is a file of the vectors."""

    def make(name, **changes):
        side, label = FILES[name]
        keys = {"method": "sdedit", "sample__start": 300, "data__image_size": side}
        keys |= {"weights__score": str(golden / "pixel" / name), "score__label": label}
        return tiny(**{**keys, **changes})

    return make


@pytest.mark.parametrize(
    "name",
    [
        "diffusers/a_ddpm_root",
        "edm/adm_edm_cond.pkl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in FILES
            if name not in ("diffusers/a_ddpm_root", "edm/adm_edm_cond.pkl")
        ),
    ],
)
def test_a_file_is_named_and_translates(task_of, tmp_path, name):
    config = task_of(name)
    sampler, origins = load_sampler(config, tmp_path)
    images, ids = batch(FILES[name][0])
    states = sampler.states(images, ids)[0]
    assert np.isfinite(states).all() and states.std() > 0.01
    assert str(config.weights.score) in origins["score"]
    assert config.score.arch == "adm"  # the given config stays as it is


def test_every_file_of_the_vectors_is_recognised(golden):
    formats = {name: registry.format_of(str(golden / "pixel" / name)) for name in FILES}
    assert all(kind == name.split("/")[0] for name, kind in formats.items())
    assert registry.format_of("shipped:fluent_score") is None
    assert registry.format_of(str(golden / "egsde" / "adm_unet.pt")) is None


@pytest.mark.slow
def test_imported_it_needs_no_file(task_of, tmp_path):
    name = "edm/ddpmpp_vp.pkl"
    config = adoption.adopted(task_of(name), tmp_path)
    exchange.import_weights(config, tmp_path)
    images, ids = batch()
    expected = load_sampler(task_of(name), "nowhere")[0](images, ids)
    alone = task_of(name, weights__score=None)
    np.testing.assert_array_equal(load_sampler(alone, tmp_path)[0](images, ids), expected)


def test_a_label_and_what_is_refused(task_of, tiny, tmp_path):
    conditional = "guided_diffusion/ema_0.9999_010000.pt"
    cases = [
        (dict(score__label=None), "needs one; choose the target's with --config.score.label"),
        (dict(score__label=6), "knows the classes 0 to 5"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            adoption.adopted(task_of(conditional, **changes), tmp_path)
    with pytest.raises(
        ValueError, match="guidance is 4.0, and the network of config.weights.score k"
    ):
        adoption.adopted(task_of(conditional, score__guidance=4.0), tmp_path)
    with pytest.raises(ValueError, match="the score network takes no class; leave both out"):
        adoption.adopted(tiny(score__label=1), tmp_path)
    with pytest.raises(ValueError, match="takes no class"):
        adoption.adopted(task_of("edm/ddpmpp_vp.pkl", score__label=1), tmp_path)
    with pytest.raises(ValueError, match="set it to 16"):
        adoption.adopted(task_of("edm/ddpmpp_vp.pkl", data__image_size=32), tmp_path)
    with pytest.raises(ValueError, match="was trained on noise up to level"):
        adoption.adopted(task_of("score_sde/ncsnpp_ve.pth", sample__start=1000), tmp_path)
    with pytest.raises(ValueError, match="names two|architectures or noise levels"):
        other = str(task_of("diffusers/c_ncsnpp").weights.score)
        adoption.adopted(task_of("edm/ddpmpp_vp.pkl", weights__source_score=other), tmp_path)
    images, ids = batch()
    one, two = (
        load_sampler(task_of(conditional, score__label=label), "nowhere")[0](images, ids)
        for label in (1, 2)
    )
    assert (one != two).any()


def test_an_exported_file_keeps_the_description(task_of, tmp_path):
    config = adoption.adopted(task_of("edm/ddpmpp_vp.pkl"), tmp_path)
    params, _ = resolve.load(config, tmp_path, "score")
    path = tmp_path / "network.safetensors"
    exported.save(path, config, "score", params, {})
    again = adoption.adopted(task_of("edm/ddpmpp_vp.pkl", weights__score=str(path)), tmp_path)
    assert again.score.published == config.score.published
    assert build.count_parameters(resolve.load(again, tmp_path, "score")[0]) > 1000
    assert json.loads(again.score.published)["arch"] == "SongUNet"


@pytest.mark.slow
def test_a_network_on_latents(golden, tiny):
    """It sees the autoencoder's latents; a start at the lowest level gives its reconstruction."""
    folder = golden / "latent" / "model" / "vae"
    fields, factor = diffusers.read_vae(folder)
    side = 16 // 2 ** (len(fields["widths"]) - 1)
    channels = fields["latent_channels"]
    net = {"input_size": side, "patch_size": 1, "in_channels": channels, "hidden_size": 16}
    net |= {"depth": 1, "num_heads": 2, "num_classes": 3, "null_class": True, "learn_sigma": True}
    path = {"state": "vp", "output": "eps", "time": {"kind": "levels", "schedule": "linear"}}
    told = published.Description(
        "DiT", net, path, side, 3, False, channels, {**fields, "factor": factor}
    )
    config = tiny(method="sdedit", sample__start=1, sample__steps=1)
    config.score.update(arch="published", published=published.to_text(told))
    adoption.check(config, told)
    params = {
        "score": random_params(config, "score"),
        latents.PARAMS: diffusers.load_vae(folder)[1],
    }
    images, ids = batch()
    states = Sampler(config, params).states(images, ids)[0]
    encoded = latents.encode(config, params, to_float(images))
    assert encoded.shape == (5, side, side, channels)
    expected = latents.decode(config, params, encoded)
    assert np.abs(states - expected).mean() < 0.1 * np.abs(expected).mean()
