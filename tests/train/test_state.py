"""One step of training: accumulation, clipping, average, learning rate, optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FOLDER
from train_helpers import assert_same_bits

from cdsde import config as config_lib
from cdsde import load_config
from cdsde.train import state

pytestmark = pytest.mark.usefixtures("compile_quickly")


def settings(**changes):
    """`config.train.score` with plain gradient descent's absence of surprises: no warm-up."""
    c = config_lib.stage_training(load_config(FOLDER), "score")
    plain = {"optimizer": "adam", "warmup": 0, "schedule": "constant"}
    c.update({**plain, "learning_rate": 0.1, "steps": 100, **changes})
    return c


def line(params, batch, key):
    """A straight line through points, a loss without randomness; `seen` is a metric."""
    error = batch["x"] @ params["kernel"] + params["bias"][None] - batch["y"]
    return jnp.mean(error**2), {"seen": jnp.mean(batch["y"])}


def line_start(key):
    return {"kernel": jax.random.normal(key, (3, 1)), "bias": jnp.ones(1)}


def points(count: int = 8):
    r = np.random.default_rng(1)
    return {"x": r.normal(size=(count, 3)), "y": r.normal(size=(count, 1))}


def run_steps(c, count: int = 1, loss=line, batch=None):
    tx = state.optimiser(c)
    step = jax.jit(state.make_step(loss, tx, c))
    states, metrics = [state.init_state(line_start, tx, 0)], None
    for _ in range(count):
        new, metrics = step(states[-1], points() if batch is None else batch)
        states.append(new)
    return states, metrics


def test_steps_bring_the_loss_down_and_count():
    states, metrics = run_steps(settings(), 60)
    first = run_steps(settings())[1]
    assert int(states[-1].step) == 60
    assert metrics["loss"] < 0.5 * first["loss"]
    assert set(metrics) == {"loss", "gradient_norm", "seen"}


def test_accumulation_equals_the_whole_batch():
    (*_, whole), metrics = run_steps(settings(accumulate=1), 5)
    (*_, parts), others = run_steps(settings(accumulate=4), 5)
    np.testing.assert_allclose(parts.params["kernel"], whole.params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(parts.ema["bias"], whole.ema["bias"], rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def draw(params, batch, key):
    value = jax.random.normal(key)
    return params["bias"].sum(), {"value": value, "square": value**2}


def test_every_step_and_micro_batch_draws_anew():
    drawn = {float(run_steps(settings(), n, draw)[1]["value"]) for n in (1, 2, 3)}
    assert len(drawn) == 3
    # The mean of the squares is the square of the mean only if all draws are the same.
    metrics = run_steps(settings(accumulate=4), 1, draw)[1]
    assert metrics["square"] > metrics["value"] ** 2 + 1e-3


def test_clipping_limits_the_gradient_but_not_the_report():
    # Adam divides the length out; its first moment keeps it.
    (*_, clipped), metrics = run_steps(settings(clip_norm=1e-3))
    (*_, free), _ = run_steps(settings(clip_norm=0.0))
    first, other = (
        jax.tree.leaves([x.mu for x in jax.tree.leaves(s.opt_state, is_leaf=has_mu) if has_mu(x)])
        for s in (clipped, free)
    )
    assert np.isclose(np.linalg.norm(np.concatenate([np.ravel(x) for x in first])), 1e-4, 1e-3)
    assert metrics["gradient_norm"] > 0.1
    assert np.linalg.norm(np.concatenate([np.ravel(x) for x in other])) > 0.01


def has_mu(x) -> bool:
    return hasattr(x, "mu")


def test_the_average_follows_closely_first_and_slowly_then():
    states, _ = run_steps(settings(ema=0.5), 40)
    start, first = states[0].params["kernel"], states[1]
    np.testing.assert_allclose(states[0].ema["kernel"], start)
    # Nine tenths of the way at the first step, half of it once `ema` is the smaller decay.
    np.testing.assert_allclose(
        first.ema["kernel"], 0.1 * start + 0.9 * first.params["kernel"], rtol=1e-6
    )
    before, last = states[-2:]
    half = (before.ema["kernel"] + last.params["kernel"]) / 2
    np.testing.assert_allclose(last.ema["kernel"], half, rtol=1e-6)


def test_learning_rate_warms_up_and_ends():
    c = settings(warmup=10, learning_rate=2e-3)
    constant = state.learning_rate(c)
    assert [float(constant(n)) for n in (0, 5, 10, 99)] == pytest.approx([0, 1e-3, 2e-3, 2e-3])
    cosine = state.learning_rate(settings(warmup=10, learning_rate=2e-3, schedule="cosine"))
    assert [float(cosine(n)) for n in (0, 5, 10, 55, 100)] == pytest.approx(
        [0, 1e-3, 2e-3, 1e-3, 0], abs=1e-9
    )
    assert float(state.learning_rate(settings(warmup=0))(0)) == pytest.approx(0.1)
    # A run of a few steps is not all warm-up.
    short = state.learning_rate(settings(warmup=500, steps=8, learning_rate=2e-3))
    assert float(short(4)) == pytest.approx(2e-3)


def test_weight_decay_takes_kernels_and_leaves_biases():
    def flat(params, batch, key):
        return 0.0 * params["kernel"].sum() + 0.0 * params["bias"].sum(), {}

    start, end = run_steps(settings(weight_decay=0.05, learning_rate=0.1), 1, flat)[0]
    np.testing.assert_allclose(end.params["kernel"], start.params["kernel"] * 0.995, rtol=1e-5)
    np.testing.assert_array_equal(end.params["bias"], start.params["bias"])
    start, end = run_steps(settings(weight_decay=0.0), 1, flat)[0]
    np.testing.assert_array_equal(end.params["kernel"], start.params["kernel"])


def test_muon_makes_kernels_steps_orthogonal_and_leaves_vectors_to_adam():
    def start(key):
        keys = jax.random.split(key)
        return {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8)), "bias": jnp.ones(8)}

    def slope(params, batch, key):
        r = np.random.default_rng(0)
        kernel = jnp.asarray(r.normal(size=(3, 3, 4, 8)), jnp.float32)
        return jnp.sum(kernel * params["kernel"]) + 5.0 * params["bias"].sum(), {}

    c = settings(optimizer="muon", muon_rate=0.5, learning_rate=0.01)
    tx = state.optimiser(c)
    before = state.init_state(start, tx, 0)
    after, _ = jax.jit(state.make_step(slope, tx, c))(before, points())
    moved = np.asarray(after.params["kernel"] - before.params["kernel"]).reshape(36, 8)
    values = np.linalg.svd(moved, compute_uv=False)
    # Newton and Schulz's five iterations bring the singular values near to 1, not to it.
    assert np.all((0.3 < values) & (values < 0.65))
    adam = np.asarray(after.params["bias"] - before.params["bias"])
    # Whatever the slope, 5 here; Nesterov's momentum looks half a step ahead.
    assert np.all((-0.016 < adam) & (adam < -0.009))


def test_a_seed_makes_the_start():
    tx = state.optimiser(settings())
    one, same, other = (state.init_state(line_start, tx, seed) for seed in (1, 1, 2))
    assert_same_bits(one, same)
    assert not np.array_equal(one.params["kernel"], other.params["kernel"])
    assert not np.array_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))
