"""What decides a picture: its pixels, its name, the seed; nothing of its company."""

import jax
import numpy as np
import pytest
from helpers import no_new_programs, random_params
from sampling_helpers import batch

from cdsde import config as config_lib
from cdsde import load_sampler
from cdsde.translation.compiled import Sampler

pytestmark = pytest.mark.usefixtures("compile_quickly")


FAST = ("sdedit", "cut")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in config_lib.SDES + config_lib.GANS
    ],
)
def test_neither_batch_nor_order_nor_devices_change_a_picture(method, task, on_devices):
    # From low levels: the first step from i = 999 divides rounding errors by √ᾱ = 0.006.
    # A round of these has more than one pass, or divides by lengths of gradients.
    once = {"sample__rounds": 1}
    own = {
        "sddm": {"sddm__blocks": 4, "sddm__until": 100, "sddm__energy": "egsde", "sddm__factor": 4},
        "ddib": {},
        "cyclediffusion": {"cyclediffusion__refine": 0},
    }
    changes = {**once, **own[method]} if method in own else {"sample__rounds": 2}
    config = task(method, sample__start=200, **changes)
    images, ids = batch()
    samplers = []
    for devices in (1, 8):
        on_devices(devices)
        samplers.append(load_sampler(config, ".")[0])
    one, eight = samplers
    assert (one.devices.size, eight.devices.size) == (1, 8)
    drawn = method in config_lib.SDES
    assert one.evaluations == (config.sample.rounds * config.sample.steps if drawn else 1)
    expected = one.states(images, ids)[0]
    assert expected.shape == (5, 16, 16, 3) and expected.dtype == np.float32
    assert expected.std() > 0.1 and np.abs(expected - expected[:1]).max() > 0.1
    # Five rows on eight devices: three are filled up and cut off again, and each stands alone.
    np.testing.assert_allclose(eight.states(images[::-1], ids[::-1])[0][::-1], expected, atol=1e-5)
    np.testing.assert_array_equal(one(images, ids), sample_uint8(expected))


def sample_uint8(y):
    return np.floor(np.clip((y + 1) / 2, 0, 1) * 255 + 0.5).astype(np.uint8)


def test_seed_and_name_decide_the_noise(task):
    config = task()
    images, ids = batch()
    sampler, _ = load_sampler(config, ".")
    first = sampler(images, ids)
    np.testing.assert_array_equal(sampler(images, ids), first)
    other_name = sampler(images, ids + np.uint32(1))
    config.sample.seed = 1
    sampler.update(config)
    other_seed = sampler(images, ids)
    for other in (other_name, other_seed):
        assert all((a != b).any() for a, b in zip(first, other, strict=True))
    twins = sampler(images[[0, 0]], ids[[0, 0]])
    np.testing.assert_array_equal(twins[0], twins[1])


def test_weights_start_seed_and_eta_change_without_compiling_again(task):
    config = task("egsde", sample__solver="ddim")
    images, ids = batch()
    sampler, _ = load_sampler(config, ".")
    seen = [sampler.states(images, ids)[0]]
    changes = [
        ("egsde.domain_weight", 5000.0),
        ("egsde.content_weight", 9.0),
        ("sample.eta", 0.7),
        ("sample.seed", 3),
        ("sample.start", 300),
        ("sample.guide_every", 3),
    ]
    for key, value in changes:
        config.update_from_flattened_dict({key: value})
        with no_new_programs():
            sampler.update(config)
            seen.append(sampler.states(images, ids)[0])
        assert np.abs(seen[-1] - seen[-2]).max() > 1e-6, f"{key} changes nothing"
    # Without weights the energies are silent: what is left is SDEdit.
    config.egsde.update(domain_weight=0.0, content_weight=0.0)
    sampler.update(config)
    with no_new_programs():
        guided = sampler.states(images, ids)[0]
    config.method, config.sample.guide_every = "sdedit", 1
    plain, _ = load_sampler(config, ".")
    np.testing.assert_allclose(guided, plain.states(images, ids)[0], atol=1e-5)


def test_the_contrast_of_score_networks_is_a_number(task):
    config = task("contrastive_sde", contrastive_sde__score_weight=0.5)
    images, ids = batch()
    sampler, _ = load_sampler(config, ".")
    other = jax.tree.map(lambda leaf: 1.1 * leaf, sampler.params["score"])
    sampler.params = {**sampler.params, "source_score": other}
    seen = [sampler.states(images, ids)[0]]
    for weight in (1.0, 0.0):
        config.contrastive_sde.score_weight = weight
        with no_new_programs():
            sampler.update(config)
            seen.append(sampler.states(images, ids)[0])
        assert np.abs(seen[-1] - seen[-2]).max() > 1e-6
    without, _ = load_sampler(config, ".")  # the source's network is not in its program
    np.testing.assert_allclose(seen[-1], without.states(images, ids)[0], atol=1e-5)
    config.contrastive_sde.score_weight = 0.5
    with pytest.raises(ValueError, match="needs source_score with these settings, which this"):
        without.update(config)


def test_a_compiled_sampler_refuses_what_is_part_of_its_program(task):
    config = task("egsde")
    sampler, _ = load_sampler(config, ".")
    for key, value in (
        ("sample.solver", "ddim"),
        ("sample.clip", False),
        ("egsde.factor", 4),
        ("data.image_size", 32),
        ("method", "sdedit"),
    ):
        other = config.copy_and_resolve_references()
        before = config_lib.get(other, key)
        other.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match=f"config.{key} was {before} when this sampler was"):
            sampler.update(other)
    sampler.update(config)


def test_rounds_go_on_where_the_last_one_ended(task):
    config = task()
    images, ids = batch()
    sampler, _ = load_sampler(config, ".")
    once, states = sampler.states(images, ids, keep=2)
    assert states.shape == (1, 2, 5, 16, 16, 3)
    config.sample.rounds = 3
    sampler.update(config)
    thrice, states = sampler.states(images, ids, keep=2)
    assert states.shape[0] == 3 and sampler.evaluations == 6
    np.testing.assert_allclose(states[0, -1], once, atol=1e-5)
    np.testing.assert_array_equal(states[2, -1], thrice)
    assert np.abs(thrice - once).max() > 1e-3


def test_a_network_that_the_program_does_not_run_is_no_part_of_it(tiny):
    """Parameters may hold more networks than the program, as those of the benchmark do."""
    off = {"contrastive_sde__score_weight": 0.0}
    config = tiny(method="contrastive_sde", **off)
    params = {s: random_params(config, s) for s in ("score", "source_score", "encoder")}
    sampler = Sampler(config, params)
    config.contrastive_sde.score_weight = 0.5
    with pytest.raises(ValueError, match="needs source_score with these settings"):
        sampler.update(config)
