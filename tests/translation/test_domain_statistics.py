"""The contrast of domains: its discriminant, and that it tells looks apart that it never saw."""

import jax
import numpy as np
import pytest

from cdsde import load_config
from cdsde.data import inputs, open_domain, resize
from cdsde.diffusion import energies, schedules
from cdsde.networks import build
from cdsde.translation import compiled, domain_statistics
from cdsde.weights import resolve

CONFIG = "configs/twemoji2fluent.py"
LEVEL = 100


@pytest.fixture(scope="module")
def shipped():
    config = load_config(CONFIG, {"method": "contrastive_sde", "contrastive_sde.domain_images": 24})
    params, _ = resolve.load(config, "nowhere", "encoder")
    return config, params, *domain_statistics.domain_direction(config, params)


def uncached(config):
    config = config.copy_and_resolve_references()
    config.cache = "off"
    return config


def test_it_is_computed_once(shipped, monkeypatch, tmp_path):
    config, params, made, _ = shipped
    monkeypatch.delattr(domain_statistics, "_means")
    again, _ = domain_statistics.domain_direction(config, params)
    for a, b in zip(made, again, strict=True):
        np.testing.assert_array_equal(a, b)
    other = jax.tree.map(lambda p: p + 1e-3, params)
    config = config.copy_and_resolve_references()
    for change in ({"contrastive_sde.domain_images": 41}, {"dtype": "bfloat16"}, {"cache": "off"}):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        with pytest.raises(NameError, match="_means"):
            domain_statistics.domain_direction(changed, params)
    with pytest.raises(NameError, match="_means"):
        domain_statistics.domain_direction(config, other)


@pytest.mark.slow
def test_it_is_the_same_every_time_and_says_what_it_is_made_of(shipped):
    config, params, made, where = shipped
    again, _ = domain_statistics.domain_direction(uncached(config), params)
    for a, b in zip(made, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert where.startswith("train, 24 of fluent, 24 of twemoji (sha256 ")
    shapes = domain_statistics.direction_shapes(config)
    assert [(a.shape, a.dtype) for a in made] == [(s.shape, s.dtype) for s in shapes]
    assert np.all(np.diff(made.levels) < 0) and made.levels[-1] == 0


def test_padding_of_the_last_batch_does_not_count(shipped):
    config, params, made, _ = shipped
    index = made.levels.astype(int)[:1]
    images, *_ = inputs.training_examples(config, "contrastive_sde.domain_images")
    expected = domain_statistics._means(config, params, images[:32], index)
    # The 33rd image repeated 31 times to a whole batch: its weight is one of 33.
    more = domain_statistics._means(config, params, images[:33], index)
    last = 33 * more - 32 * expected
    assert np.linalg.norm(last) < 1.0001 and np.linalg.norm(more - expected) < 2.1 / 33


def test_the_domains_are_one_apart_whatever_the_scale_of_the_features():
    source, target = np.random.default_rng(0).standard_normal((2, 5, 8))
    for scale in (1, 7):
        normal = domain_statistics.scaled_gap(scale * source, scale * target)
        apart = np.sum(scale * (source - target) * normal, axis=-1)
        assert apart.mean() == pytest.approx(1) and np.all(apart > 0)


def test_held_out_images_of_the_target_have_the_lower_energy(shipped):
    config, params, made, _ = shipped
    apply = build.encoder_model(config).apply
    energy = energies.domain_contrast(lambda x, i: apply(params, x, i, space="features"), made)
    alpha_bar = build.schedule_of(config).alpha_bar[LEVEL]

    def of(domain):
        source = open_domain("emoji", domain, "val")
        x0 = np.stack([resize(source[j]["image"], 32) for j in range(len(source))]) / 127.5 - 1
        e = jax.random.normal(jax.random.key(0), x0.shape)
        return np.asarray(jax.jit(energy)(schedules.perturb(x0, e, alpha_bar), None, float(LEVEL)))

    fluent, twemoji = of("fluent"), of("twemoji")
    # The same concepts by two makers, none of which the discriminant has seen: on average three
    # standard errors apart.
    apart = twemoji - fluent
    assert apart.mean() > 3 * apart.std() / np.sqrt(len(apart))


def test_a_sampler_has_it_only_where_the_config_says_so(shipped):
    config = shipped[0].copy_and_resolve_references()
    params, origins = compiled.load_params(config, "nowhere")
    assert set(params) == {"score", "encoder", "domain_direction"} == set(origins)
    assert len(compiled.levels(config).weights[0]) == 3
    config.contrastive_sde.update(domain_images=0, domain_weight=0.0)
    assert set(compiled.load_params(config, "nowhere")[0]) == {"score", "encoder"}
    assert len(compiled.levels(config).weights[0]) == 2


def test_missing_training_images_are_told_with_what_wants_them(shipped, tmp_path):
    config = shipped[0].copy_and_resolve_references()
    config.data.root = str(tmp_path)
    with pytest.raises(
        ValueError, match="domain_images=24 reads training images: .*'train'.* to 0"
    ):
        domain_statistics.domain_direction(config, shipped[1])


def test_a_weight_without_images_is_told():
    with pytest.raises(ValueError, match="domain_weight is 5.0 and domain_images 0"):
        changes = {"contrastive_sde.domain_images": 0, "contrastive_sde.domain_weight": 5.0}
        load_config(CONFIG, {"method": "contrastive_sde", **changes})
