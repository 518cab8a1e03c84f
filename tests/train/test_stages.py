"""The stages on one device and on eight, and the noise levels that they draw."""

import math

import jax
import numpy as np
import pytest
from train_helpers import distance, rows

from cdsde import config as config_lib
from cdsde.networks import build
from cdsde.train import loop, stages

pytestmark = pytest.mark.usefixtures("compile_quickly")


# --- networks: one device or eight ---


@pytest.mark.slow
def test_one_device_and_eight_train_the_same_score_network(tiny, tmp_path, on_devices):
    finals, split = [], []
    for devices, fsdp in ((1, 1), (8, 1), (8, 4)):
        on_devices(devices)
        config = tiny(
            train__steps=4,
            train__checkpoint_every=100,
            mesh__fsdp=fsdp,
        )
        final = loop.train_stage(config, tmp_path / f"{devices}{fsdp}", "score")
        assert final.step.sharding.device_set == set(jax.devices()[:devices])
        # What a device holds of everything that the optimiser keeps.
        held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(final))
        split.append(held / sum(x.size for x in jax.tree.leaves(final)))
        finals.append(jax.tree.map(np.asarray, (final.params, final.ema)))
    assert split[:2] == [1, 1] and split[2] < 0.6
    assert distance(*finals[:2]) < 1e-5 and distance(*finals[1:]) < 1e-5
    one, eight, shared = (rows(tmp_path / name, "score") for name in ("11", "81", "84"))
    for other in (eight, shared):
        assert [row["loss"] for row in other] == pytest.approx([x["loss"] for x in one], rel=1e-5)
    # What eight devices began, one goes on with, and the other way round.
    for folder, devices, fsdp in (("84", 1, 1), ("11", 8, 4)):
        on_devices(devices)
        longer = tiny(train__steps=6, train__checkpoint_every=100, mesh__fsdp=fsdp)
        assert int(loop.train_stage(longer, tmp_path / folder, "score").step) == 6


@pytest.mark.slow
def test_a_learned_variance_is_trained(tiny, on_devices):
    on_devices(1)
    config = tiny(score__learn_sigma=True)
    stage = stages.make(config, "score")
    params = stage.init(jax.random.key(0))
    batch = {"image": np.full((4, 16, 16, 3), 90, np.uint8), "domain": np.zeros(4, np.int32)}
    gradient, metrics = jax.grad(stage.loss, has_aux=True)(params, batch, jax.random.key(1))
    last = gradient["params"]["out_2"]["bias"]
    assert set(metrics) == {"bound"} and metrics["bound"] > 0
    assert last.shape == (6,) and np.all(last != 0)


def test_a_mesh_that_does_not_fit_the_devices(tiny, tmp_path, on_devices):
    on_devices(8)
    with pytest.raises(ValueError, match="mesh.fsdp is 3, which does not divide the 8 devices"):
        loop.train_stage(tiny(mesh__fsdp=3), tmp_path, "score")


@pytest.mark.slow
def test_one_device_and_eight_train_the_same_encoder_and_it_learns(tiny, tmp_path, on_devices):
    # Negatives come from the whole batch, whichever device they lie on: devices that looked at
    # their own two images alone would have another loss than the one that sees all sixteen.
    changes = {
        "train__batch_size": 16,
        "train__checkpoint_every": 100,
        "train__encoder__max_index": 100,
        "train__encoder__learning_rate": 1e-3,
        "train__encoder__schedule": "constant",
        # With 32 channels each is a group of its own in GroupNorm, a bias before it has no gradient
        # but rounding errors, and Adam makes whole steps of these.
        "encoder__channels": 64,
    }
    finals = []
    for devices in (8, 1):
        on_devices(devices)
        final = loop.train_stage(
            tiny(train__steps=6, **changes), tmp_path / str(devices), "encoder"
        )
        finals.append((final.params, final.ema))
    assert distance(*finals) < 1e-5
    one, eight = (rows(tmp_path / devices, "encoder") for devices in "18")
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in eight], rel=1e-5)
    loop.train_stage(tiny(train__steps=36, **changes), tmp_path / "8", "encoder")
    losses = [row["loss"] for row in rows(tmp_path / "8", "encoder")]
    assert len(losses) == 36 and np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


@pytest.mark.slow
def test_the_classifier_learns_two_colours(tiny, tmp_path, on_devices):
    on_devices(1)
    config = tiny(
        train__steps=36,
        train__batch_size=16,
        train__checkpoint_every=100,
        train__classifier__learning_rate=1e-2,
        train__classifier__schedule="constant",
    )
    loop.train_stage(config, tmp_path, "classifier")
    table = rows(tmp_path, "classifier")
    assert table[0]["loss"] == pytest.approx(math.log(2), rel=0.05)
    assert np.mean([row["loss"] for row in table[-5:]]) < 0.4
    assert np.mean([row["accuracy"] for row in table[-5:]]) > 0.9


# --- which levels the score network is trained on ---


def test_levels_are_drawn_uniformly_or_normally_in_log_snr(tiny):
    schedule = build.schedule_of(tiny())
    training = config_lib.stage_training(tiny(), "score")
    training.levels = "index"
    np.testing.assert_allclose(stages.level_shares(schedule, training), np.full(1000, 1e-3))
    training.update(levels="log_snr", log_snr_mean=1.0, log_snr_std=2.0)
    shares = stages.level_shares(schedule, training)
    assert shares.sum() == pytest.approx(1) and shares.min() >= 0
    alpha_bar = schedule.alpha_bar.astype(float)
    log_snr = np.log(alpha_bar / (1 - alpha_bar))
    assert shares @ log_snr == pytest.approx(1.0, abs=0.02)
    assert np.sqrt(shares @ (log_snr - 1) ** 2) == pytest.approx(2.0, abs=0.05)

    draw = jax.jit(lambda key: stages.draw_levels(key, shares, 50))
    drawn = np.concatenate([draw(jax.random.key(k)) for k in range(200)])
    seen = np.bincount(drawn, minlength=1000)
    for low, high in ((0, 100), (100, 300), (300, 600), (600, 1000)):
        expected = shares[low:high].sum()
        assert seen[low:high].sum() / len(drawn) == pytest.approx(expected, abs=0.01)
