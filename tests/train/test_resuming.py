"""Checkpoints of a training: broken ones, another network's, and whose a folder is."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence
from train_helpers import assert_same_bits, distance, one_colour, rows

from cdsde.networks import build
from cdsde.runtime import files
from cdsde.train import loop, stages, state
from cdsde.weights import checkpoint, resolve

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_a_changed_network_does_not_pass_for_the_old_one(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=2), tmp_path, "score")
    wider = tiny(train__steps=4, score__channels=64)
    expected = (
        r"checkpoints/score/2 does not fit the config in 1 parameters \(colour: saved "
        r"\(32, 3\), config asks for \(64, 3\)\); use the config it was trained with"
    )
    with pytest.raises(ValueError, match="config.score.channels is 64, the weights have 32"):
        loop.train_stage(wider, tmp_path, "score")
    shapes = {"colour": jax.ShapeDtypeStruct((64, 3), jnp.float32)}
    with pytest.raises(ValueError, match=expected):
        checkpoint.open_ema(tmp_path, "score", shapes)
    with pytest.raises(ValueError, match="no checkpoint of 'encoder' under .*checkpoints/encoder"):
        checkpoint.open_ema(tmp_path, "encoder", shapes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"score__prediction": "eps"}, "config.score.prediction is eps, the weights have v"),
        ({"sde__schedule": "cosine"}, "config.sde.schedule is cosine, the weights have linear"),
        ({"sde__num_steps": 500, "sample__start": 400}, "config.sde.num_steps is 500"),
        ({"score__group_channels": 2}, "config.score.group_channels is 2, the weights have 4"),
        ({"score__num_head_channels": 16}, "config.score.num_head_channels is 16"),
        ({"score__attention_resolutions": (16,)}, "config.score.attention_resolutions is [16]"),
        ({"score__use_scale_shift_norm": False}, "config.score.use_scale_shift_norm is False"),
        ({"data__image_size": 32}, "config.data.image_size is 32, the weights have 16"),
        ({"data__source": "yellow", "data__target": "blue"}, "blue, the weights have yellow"),
    ],
)
def test_training_does_not_go_on_from_another_ones_weights(toy, tiny, tmp_path, changes, named):
    loop.train_stage(tiny(train__steps=1), tmp_path, "score")
    with pytest.raises(ValueError) as error:
        loop.train_stage(tiny(train__steps=2, **changes), tmp_path, "score")
    assert named in str(error.value) and "checkpoints/score/1" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_change_a_networks_meaning_may_change(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=1), tmp_path, "score")
    free = {"score__dropout": 0.1, "train__batch_size": 16, "data__flip": False, "method": "egsde"}
    assert int(loop.train_stage(tiny(train__steps=2, **free), tmp_path, "score").step) == 2
    # Another domain is a new training, from the weights of the old one.
    other = {"data__source": "yellow", "data__target": "blue", "train__fine_tune": True}
    moved = tiny(train__steps=1, train__stage="score", **other)
    with pytest.raises(ValueError, match="the weights have yellow"):
        loop.train_stage(moved, tmp_path, "score")


def damaged(value):
    return lambda tree: jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value), tree)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training_does_not_go_on_from_a_damaged_checkpoint(toy, tiny, tmp_path, monkeypatch, value):
    real = checkpoint.save

    def breaks(m, step, rest, ema, config):
        real(m, step, rest, damaged(value)(ema) if step == 4 else ema, config)

    monkeypatch.setattr(checkpoint, "save", breaks)
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    monkeypatch.setattr(checkpoint, "save", real)
    with pytest.raises(ValueError, match=r"score/4 is damaged: 1 .*ema/colour.* on from step 2"):
        loop.train_stage(tiny(train__steps=8), tmp_path, "score")
    shutil.rmtree(tmp_path / "checkpoints" / "score" / "4")
    assert int(loop.train_stage(tiny(train__steps=8), tmp_path, "score").step) == 8


def test_a_good_checkpoint_is_not_pruned_for_a_bad_one(toy, tiny, tmp_path, monkeypatch):
    """The averages are in no loss: they may be bad while all that is reported is good."""
    config = tiny(train__steps=6, train__keep=1)
    real = state.advance

    def advance(*arguments):
        new = real(*arguments)
        bad = jax.tree.map(lambda x: jnp.where(new.step >= 3, jnp.nan, x), new.ema)
        return new._replace(ema=bad)

    monkeypatch.setattr(state, "advance", advance)
    with pytest.raises(loop.NonFiniteLoss, match=r"at step 4 \(first: ema/colour\); the checkp"):
        loop.train_stage(config, tmp_path, "score")
    assert checkpoint.latest_step(tmp_path, "score") == 2
    shapes = {"colour": jax.ShapeDtypeStruct((config.score.channels, 3), jnp.float32)}
    assert np.isfinite(checkpoint.open_ema(tmp_path, "score", shapes)["colour"]).all()


def test_what_a_kill_in_the_middle_of_a_save_leaves_is_no_checkpoint(toy, tiny, tmp_path):
    steady = {"train__score__schedule": "constant"}  # does not depend on the last step
    loop.train_stage(tiny(train__steps=4, **steady), tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    unfinished = folder / "6.orbax-checkpoint-tmp-1700000000"
    (unfinished / "ema").mkdir(parents=True)
    # An old one that was being deleted.
    for path in sorted((folder / "2" / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert checkpoint.latest_step(tmp_path, "score") == 4
    longer = tiny(train__steps=8, **steady)
    again = loop.train_stage(longer, tmp_path, "score")
    assert int(again.step) == 8 and checkpoint.latest_step(tmp_path, "score") == 8
    assert_same_bits(again, loop.train_stage(longer, tmp_path / "whole", "score"))


# What damages the newest checkpoint, and what is said of it.
DAMAGE = {
    "nothing in it": (".", "4/_CHECKPOINT_METADATA is missing"),
    "no state": ("state", "state/ is missing"),
    "no averages": ("ema", "ema/ is missing"),
    "arrays cut short": ("state/d/*", "the arrays of state/ cannot be read"),
    "averages cut short": ("ema/d/*", "the arrays of ema/ cannot be read"),
    "manifest gone": ("ema/manifest.ocdbt", "ema/ has 0 of its 1 arrays"),
    "names cut short": ("state/_METADATA", "state/_METADATA is damaged"),
    "no config": ("config", "config/metadata is missing"),
    "config cut short": ("config/metadata", "config/metadata is damaged"),
}


# Configs of another shape, as JSON.
ODD = ("", "[]", '{"data": 5}', '{"score": [1]}', '{"data": {"source": 3, "target": null}}',
       '{"data": {"domains": 5}}', '{"score": {"published": 1}}')  # fmt: skip


def damage(folder, pattern: str) -> None:
    """Empties or deletes what matches: a folder, a manifest; other files are cut in half."""
    for path in list(folder.glob(pattern)) if pattern != "." else [folder]:
        if path.is_dir():
            shutil.rmtree(path)
            if pattern == ".":
                path.mkdir()
        elif path.name.startswith("manifest"):
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("what", DAMAGE)
def test_a_broken_checkpoint_is_named_and_the_one_before_goes_on(
    toy, tiny, tmp_path, warned, capfd, what
):
    config = tiny(method="sdedit", train__steps=4)
    expected = loop.train_stage(config, tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    pattern, reason = DAMAGE[what]
    damage(folder / "4", pattern)
    shapes = {"colour": jax.ShapeDtypeStruct((32, 3), jnp.float32)}
    checkpoint.open_ema(tmp_path, "score", shapes)
    checkpoint.open_ema(tmp_path, "score", shapes)  # says it once
    if "state" not in pattern:  # which sampling does not read
        assert warned == [
            f"the checkpoint {folder}/4 is broken: {reason}",
            "the newest whole checkpoint of score is step 2: it is taken",
        ]
    warned.clear()
    loop.train(config, tmp_path)
    assert warned[0] == f"the checkpoint {folder}/4 is broken: {reason}"
    assert warned[2] == f"{folder}/4 is now {folder}/broken-4" and len(warned) == 3
    assert "Traceback" not in capfd.readouterr().err
    assert_same_bits(loop.train_stage(config, tmp_path, "score"), expected)
    assert [row["step"] for row in rows(tmp_path, "score")] == [1, 2, 3, 4]


def test_a_config_of_another_shape_is_a_broken_checkpoint(toy, tiny, tmp_path, warned):
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    path = folder / "4" / "config" / "metadata"
    for n, text in enumerate(ODD):
        path.write_text(text)
        assert checkpoint.newest_whole(tmp_path, "score") == 2
        assert bool(warned) == (n == 0)
        warned.clear()
        with pytest.raises(ValueError, match="4/config/metadata, .*is missing or damaged") as error:
            checkpoint.saved_config(tmp_path, "score")
        assert "\n" not in str(error.value)
    path.write_text("{}")  # of an earlier version, which says nothing
    assert checkpoint.newest_whole(tmp_path, "score") == 4
    (folder / "4" / "ema" / "_METADATA").write_text('{"tree_metadata": []}')
    assert checkpoint.newest_whole(tmp_path, "score") == 2
    assert warned[0] == f"the checkpoint {folder}/4 is broken: ema/_METADATA is damaged"


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/score"])
def test_a_file_where_checkpoints_should_be_is_named(toy, tiny, tmp_path, place):
    path = tmp_path / "work" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    for call in (
        lambda: loop.train(tiny(method="sdedit"), tmp_path / "work"),
        lambda: resolve.load(tiny(), tmp_path / "work", "score"),
    ):
        with pytest.raises(ValueError, match="is a file, and checkpoints lie in a folder") as error:
            call()
        assert str(error.value).startswith(f"{path} is a file") and "\n" not in str(error.value)


def test_where_every_checkpoint_is_broken_nothing_is_trained_over_them(toy, tiny, tmp_path):
    loop.train_stage(tiny(train__steps=4), tmp_path, "score")
    folder = tmp_path / "checkpoints" / "score"
    damage(folder / "2", "ema")
    damage(folder / "4", ".")
    shapes = {"colour": jax.ShapeDtypeStruct((32, 3), jnp.float32)}
    for call in (
        lambda: loop.train(tiny(method="sdedit"), tmp_path),
        lambda: checkpoint.open_ema(tmp_path, "score", shapes),
    ):
        with pytest.raises(
            ValueError, match="no checkpoint in .*score is whole .step 4: "
        ) as error:
            call()
        assert "step 2: ema/ is missing" in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]


OTHER_OPTIMISERS = {
    "train.score.optimizer": ("adam", "muon"),
    "train.clip_norm": (0.0, 1.0),
    "train.encoder.weight_decay": (0.0, 0.05),
}


@pytest.mark.parametrize("key", OTHER_OPTIMISERS)
def test_another_optimiser_is_named(toy, tiny, tmp_path, monkeypatch, key):
    monkeypatch.setattr(stages, "encoder", lambda config: one_colour(config, ("yellow",)))
    stage = "encoder" if "encoder" in key else "score"
    now, then = OTHER_OPTIMISERS[key]
    loop.train_stage(tiny(train__steps=2, **{key: then}), tmp_path, stage)
    expected = (
        f"{stage}/2 .config.{key} is {now}, and was {then}.; go on with the values it was trained"
    )
    with pytest.raises(ValueError, match=expected) as error:
        loop.train_stage(tiny(train__steps=4, **{key: now}), tmp_path, stage)
    assert "\n" not in str(error.value)
    # What leaves the optimiser's numbers as they are may change.
    changes = {key: then, "train.score.learning_rate": 1e-5, "train.encoder.warmup": 0}
    assert int(loop.train_stage(tiny(train__steps=4, **changes), tmp_path, stage).step) == 4


def test_two_programs_do_not_train_the_same_network_in_one_folder(toy, tiny, tmp_path):
    config = tiny(train__steps=2)
    with files.alone(checkpoint.stage_folder(tmp_path, "score"), "trains score"):
        with pytest.raises(ValueError, match="another program trains score in .*score; wait") as e:
            loop.train_stage(config, tmp_path, "score")
        assert one_sentence(str(e.value))
        loop.train_stage(config, tmp_path / "elsewhere", "score")
    assert int(loop.train_stage(config, tmp_path, "score").step) == 2
    assert not list((tmp_path / "checkpoints" / "score").glob(".*"))


@pytest.mark.slow
def test_fine_tuning_begins_from_imported_weights(tiny, tmp_path, on_devices):
    on_devices(1)
    still = {"train__score__learning_rate": 1e-9, "train__score__muon_rate": 1e-9}
    changes = {**still, "train__checkpoint_every": 100}
    given = build.score_model(tiny()).init(jax.random.key(7))
    checkpoint.save_imported(tmp_path, "score", given, {})
    with pytest.raises(ValueError, match="imported weights; .*train.fine_tune=True"):
        loop.train_stage(tiny(train__steps=1, **changes), tmp_path, "score")
    changes |= {"train__fine_tune": True, "train__stage": "score"}
    tuned = loop.train_stage(tiny(train__steps=1, **changes), tmp_path, "score")
    assert int(tuned.step) == 1 and distance((tuned.params, tuned.ema), (given, given)) < 1e-6
    # From there on the run's own checkpoints count.
    assert int(loop.train_stage(tiny(train__steps=2, **changes), tmp_path, "score").step) == 2
    with pytest.raises(ValueError, match="needs a trained score network, and there is none"):
        loop.train_stage(tiny(train__steps=1, **changes), tmp_path / "none", "score")
