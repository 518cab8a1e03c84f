"""The solvers on problems whose answer is known.

Data N(m, s²), independent in each value, have the exact noise prediction

    ε(x, i) = √(1-ᾱ) (x - √ᾱ m) / v,   v = ᾱ s² + 1 - ᾱ

so a run is an affine map of its start and its noises. `moments` reads that map off one run (each
value of the image is given one of them alone), hence mean and variance without sampling error.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde import load_config
from cdsde.diffusion import energies, methods, schedules, solvers

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
SCHEDULE = schedules.linear()
MEAN, STD = 0.4, 0.5


def exact_eps(y, i, mean=MEAN, std=STD):
    alpha_bar = schedules.gather(SCHEDULE.alpha_bar, i.astype(int))
    variance = alpha_bar * std**2 + 1 - alpha_bar
    return jnp.sqrt(1 - alpha_bar) * (y - jnp.sqrt(alpha_bar) * mean) / variance


def marginal(i, mean=MEAN, std=STD):
    """Exact mean and variance of the perturbed data at index i; -1 is the data."""
    alpha_bar = 1.0 if i < 0 else float(SCHEDULE.alpha_bar[i])
    return alpha_bar**0.5 * mean, alpha_bar * std**2 + 1 - alpha_bar


def probe(grid, eps_fn=exact_eps, solver=solvers.ancestral, **kwargs):
    """The affine map to the state after each step: its (offset, gain of start, gains of noises)."""
    steps = len(grid.index)
    y = jnp.zeros((1, 1, steps + 2, 1)).at[0, 0, 1, 0].set(1.0)

    @jax.jit
    def run(y, grid):
        return solvers.reverse(
            y,
            grid,
            eps_fn=eps_fn,
            solver=solver,
            noise_fn=lambda position, i: jnp.zeros(y.shape).at[0, 0, position + 2, 0].set(1.0),
            trace=True,
            **kwargs,
        )[1]

    lines = np.asarray(run(y, grid), np.float64).reshape(steps, steps + 2)
    return lines[:, 0], lines[:, 1] - lines[:, 0], lines[:, 2:] - lines[:, :1]


def moments(grid, start=None, **kwargs):
    """Mean and variance of the states after each step, from the exact marginal or `start`."""
    offset, gain, noises = probe(grid, **kwargs)
    mean, variance = marginal(int(grid.index[0])) if start is None else start
    return offset + gain * mean, gain**2 * variance + np.sum(noises**2, axis=1)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# --- levels and coefficients ---


def test_every_level_is_taken_by_default():
    np.testing.assert_array_equal(solvers.indices(5), [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(solvers.indices(1), [0])


def test_strided_levels_are_even_and_distinct():
    for start in range(1, 60):
        np.testing.assert_array_equal(solvers.indices(start, start), solvers.indices(start))
        for steps in range(1, start + 1):
            levels = solvers.indices(start, steps)
            assert len(levels) == steps
            assert levels[0] == start - 1
            assert np.all(np.diff(levels) < 0)
            if steps > 1:
                assert levels[-1] == 0
                even = (start - 1) * (1 - np.arange(steps) / (steps - 1))
                assert np.abs(levels - even).max() < 0.501


@pytest.mark.parametrize(("start", "steps"), [(10, 0), (10, 11), (10, -3), (0, None)])
def test_impossible_numbers_of_steps(start, steps):
    number = start if steps is None else steps
    message = rf"steps is {number}; it must lie in 1\.\.{start}, the start level"
    with pytest.raises(ValueError, match=message):
        solvers.indices(start, steps)
    with pytest.raises(ValueError, match=message):
        solvers.make_grid(SCHEDULE, start, steps)


@pytest.mark.parametrize(("start", "steps"), [(1000, None), (500, 50), (300, 299), (7, 1), (1, 1)])
def test_grid(start, steps):
    grid = solvers.make_grid(SCHEDULE, start, steps)
    count = steps or start
    assert all(len(column) == count for column in grid)
    np.testing.assert_array_equal(grid.index, solvers.indices(start, steps))
    np.testing.assert_array_equal(grid.last, np.arange(count) == count - 1)
    np.testing.assert_array_equal(grid.alpha_bar, SCHEDULE.alpha_bar[grid.index])
    np.testing.assert_array_equal(grid.next_alpha_bar[:-1], grid.alpha_bar[1:])
    assert grid.next_alpha_bar[-1] == 1
    for column in (grid.alpha_bar, grid.next_alpha_bar, grid.beta, grid.posterior_std):
        assert column.dtype == np.float32
    # The steps together go all the way.
    signal = np.prod(1 - grid.beta.astype(np.float64))
    assert signal == pytest.approx(float(grid.alpha_bar[0]), rel=1e-5)
    np.testing.assert_array_equal(grid.posterior_std == 0, grid.last)


def test_grid_takes_beta_from_the_table_where_it_can():
    np.testing.assert_array_equal(solvers.make_grid(SCHEDULE, 1000).beta, SCHEDULE.beta[::-1])
    grid = solvers.make_grid(SCHEDULE, 10, 7)
    gaps = -np.diff(np.append(grid.index, -1))
    assert set(gaps) == {1, 2}
    np.testing.assert_array_equal(grid.beta[gaps == 1], SCHEDULE.beta[grid.index[gaps == 1]])
    assert np.all(grid.beta[gaps == 2] > 1.9 * SCHEDULE.beta[grid.index[gaps == 2] - 1])


def test_coefficients_are_the_published_ones():
    with np.load(GOLDEN / "schedule.npz") as arrays:
        tables = {k: v[::-1] for k, v in arrays.items()}
    for variance in ("fixedsmall", "fixedlarge"):
        grid = solvers.make_grid(SCHEDULE, 1000, variance=variance)
        std = np.exp(tables[f"logvar_{variance}"].astype(np.float64) / 2)
        np.testing.assert_allclose(grid.posterior_std[:-1], std[:-1], rtol=1e-6)

    def gain(*arguments):
        images = [np.full((1, 1, 1, 1), value, np.float32) for value in arguments]
        step = solvers.ancestral.step
        apply = jax.jit(jax.vmap(lambda at: step(*images[:3], at, images[3], ())[0]))
        return np.asarray(apply(solvers.Grid(*grid))).ravel()

    np.testing.assert_allclose(gain(1, 0, 0, 0), tables["inv_sqrt_alphas"], rtol=1e-6)
    np.testing.assert_allclose(gain(0, 0, 1, 0), -tables["weight_energy"], rtol=1e-6)
    of_eps = -tables["weighted_score"] * tables["inv_sqrt_alphas"]
    np.testing.assert_allclose(gain(0, 1, 0, 0), of_eps, rtol=2e-6)
    np.testing.assert_array_equal(gain(0, 0, 0, 1), grid.posterior_std)


# --- Gaussian data ---


@pytest.mark.parametrize("start", [1000, 500])
def test_ancestral_reaches_the_data(start):
    for variance in ("fixedsmall", "fixedlarge"):
        mean, var = moments(solvers.make_grid(SCHEDULE, start, variance=variance))
        assert mean[-1] == pytest.approx(MEAN, abs=1e-5)
        assert var[-1] == pytest.approx(STD**2, rel=0.02)
        expected = np.array([marginal(i) for i in range(start - 2, -2, -1)]).T
        np.testing.assert_allclose(mean, expected[0], atol=1e-5)
        np.testing.assert_allclose(var, expected[1], rtol=0.02)


@pytest.mark.parametrize("steps", [None, 30, 3])
@pytest.mark.parametrize(("variance", "std"), [("fixedsmall", 0.0), ("fixedlarge", 1.0)])
def test_each_variance_is_exact_for_its_extreme(variance, std, steps):
    # Ho et al. 2020, section 3.2: the small one for data at one point, the large for N(0, 1).
    mean = MEAN if std == 0 else 0.0
    grid = solvers.make_grid(SCHEDULE, 300, steps, variance)
    eps_fn = functools.partial(exact_eps, mean=mean, std=std)
    levels = np.append(grid.index[1:], -1)
    expected = np.array([marginal(int(i), mean, std) for i in levels]).T
    found = moments(grid, marginal(299, mean, std), eps_fn=eps_fn)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    # Float32's rounding of alpha_bar is that of 1 - alpha_bar, down to 2e-4 before the last step.
    np.testing.assert_allclose(found[1][:-1], expected[1][:-1], rtol=2e-4)
    # The last step, from 1e-4 of noise, adds none.
    assert found[1][-1] == pytest.approx(std**2, abs=1.1e-4)


@pytest.mark.parametrize("name", ["fixedsmall", "fixedlarge", "ddim"])
def test_error_is_of_first_order(name):
    """Half the step, half the error, down to what the finest grid leaves."""
    errors = []
    for steps in (10, 20, 40, 80, 160):
        variance = "fixedsmall" if name == "ddim" else name
        grid = solvers.make_grid(SCHEDULE, 500, steps, variance)
        solver = solvers.ddim() if name == "ddim" else solvers.ancestral
        mean, var = moments(grid, solver=solver)
        assert mean[-1] == pytest.approx(MEAN, abs=1e-5)
        errors.append(abs(var[-1] ** 0.5 - STD))
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all((ratios > 1.4) & (ratios < 2.4)), ratios
    assert errors[-1] < 0.012


def test_ddim_is_the_probability_flow():
    # Its exact solution keeps each value's place in the distribution.
    grid = solvers.make_grid(SCHEDULE, 500)
    offset, gain, noises = probe(grid, solver=solvers.ddim())
    assert not np.any(noises)
    mean, variance = marginal(499)
    assert gain[-1] == pytest.approx(STD / variance**0.5, rel=4e-3)
    assert offset[-1] + gain[-1] * mean == pytest.approx(MEAN, abs=1e-5)


# --- DDIM and ancestral ---

IMAGES = (2, 8, 8, 3)


def some_eps(y, i):
    return jnp.tanh(y + i / 500)


def some_guidance(y, i, extra):
    return 3 * jnp.sin(2 * y)


def run_images(grid, solver, guidance_fn=some_guidance, eps_fn=some_eps, **kwargs):
    z = jnp.asarray(normal(1, len(grid.index), *IMAGES))

    @jax.jit
    def run(y, grid):
        return solvers.reverse(
            y,
            grid,
            eps_fn=eps_fn,
            solver=solver,
            noise_fn=lambda position, i: z[position],
            guidance_fn=guidance_fn,
            **kwargs,
        )

    return run(normal(0, *IMAGES), grid)


@pytest.mark.parametrize("steps", [None, 13])
def test_ddim_with_eta_one_is_ancestral(steps):
    grid = solvers.make_grid(SCHEDULE, 60, steps)
    expected = run_images(grid, solvers.ancestral)[0]
    np.testing.assert_allclose(run_images(grid, solvers.ddim(1.0))[0], expected, atol=2e-5)
    for eta in (0.0, 0.5):
        assert np.abs(run_images(grid, solvers.ddim(eta))[0] - expected).max() > 0.01
    # Guidance is in it.
    unguided = run_images(grid, solvers.ancestral, None)[0]
    assert np.abs(unguided - expected).max() > 0.01


def test_ddim_without_eta_ignores_the_noise():
    grid = solvers.make_grid(SCHEDULE, 60, 13)
    silent = grid._replace(posterior_std=0 * grid.posterior_std)
    expected = run_images(grid, solvers.ddim(0.0))[0]
    np.testing.assert_array_equal(run_images(silent, solvers.ddim(0.0))[0], expected)


@pytest.mark.parametrize("solver", [solvers.ancestral, solvers.ddim(0.7), solvers.dpmpp_2m(0.6)])
def test_last_step_adds_no_noise(solver):
    grid = solvers.make_grid(SCHEDULE, 1)
    y = normal(0, *IMAGES)
    result = run_images(grid, solver, None)[0]
    i, alpha_bar = jnp.zeros(()), SCHEDULE.alpha_bar[0]
    np.testing.assert_allclose(result, schedules.eps_to_x0(y, some_eps(y, i), alpha_bar), atol=1e-5)


# --- DPM-Solver++ ---


@functools.cache
def fine_schedule():
    """The linear VP SDE on so many levels that taking the nearest one changes nothing."""
    t = (np.arange(100_000) + 1) / 100_000
    return schedules.Schedule(np.zeros(t.shape), np.exp(-0.5 * t**2 * 19.9 - 0.1 * t))


def errors_at_level_0(solver, steps):
    """Of mean and standard deviation, in float64, from the middle of the noise to level 0."""
    schedule = fine_schedule()

    def eps_fn(y, i):
        alpha_bar = jnp.asarray(schedule.alpha_bar)[i.astype(int)]
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        return jnp.sqrt(1 - alpha_bar) * (y - jnp.sqrt(alpha_bar) * MEAN) / variance

    with jax.enable_x64(True):
        grid = solvers.make_grid(schedule, 50_000, steps + 1, spacing="log_snr")
        a, b = schedule.alpha_bar[49_999], schedule.alpha_bar[0]
        start = a**0.5 * MEAN, a * STD**2 + 1 - a
        mean, var = moments(grid, start, eps_fn=eps_fn, solver=solver)
    exact = b**0.5 * MEAN, (b * STD**2 + 1 - b) ** 0.5
    return abs(mean[-2] - exact[0]), abs(var[-2] ** 0.5 - exact[1])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpmpp_is_of_second_order(eta):
    """Half the step, a quarter of the error, for the ODE and for the SDE."""
    found = [errors_at_level_0(solvers.dpmpp_2m(eta), steps) for steps in (20, 40, 80, 160)]
    mean, std = np.transpose(found)
    assert np.all(mean < 2e-6)
    ratios = std[:-1] / std[1:]
    assert np.all(ratios > 2.9), ratios
    assert ratios[-1] == pytest.approx(4, abs=0.1)
    assert std[0] < 0.5 * errors_at_level_0(solvers.ddim(eta), 20)[1]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_first_and_last_step_of_dpmpp_are_ddim(eta):
    for steps in (1, 2):
        grid = solvers.make_grid(SCHEDULE, 60, steps)
        found, first = (
            run_images(grid, solver, trace=True)[1]
            for solver in (solvers.dpmpp_2m(eta), solvers.ddim(eta))
        )
        np.testing.assert_allclose(found, first, atol=2e-5)
    grid = solvers.make_grid(SCHEDULE, 60, 5)
    found, first = (run_images(grid, s(eta))[0] for s in (solvers.dpmpp_2m, solvers.ddim))
    assert np.abs(found - first).max() > 0.01


@pytest.mark.parametrize(
    "solver", [solvers.ancestral, solvers.ddim(0.0), solvers.ddim(1.0), solvers.dpmpp_2m(0.0)]
)
def test_gain_is_what_guidance_moves(solver):
    grid = solvers.make_grid(SCHEDULE, 400, 6, spacing="log_snr")
    gain = solvers.gain(solver, grid)
    y = jnp.zeros((1, 1, 1, 1))

    def moved(position):
        # A gradient in one step only, and what the state has become right after it.
        states = solvers.reverse(
            y,
            grid,
            eps_fn=lambda y, i: jnp.zeros_like(y),
            solver=solver,
            noise_fn=lambda position, i: y,
            guidance_fn=lambda y, i, extra: jnp.full_like(y, extra),
            per_step=jnp.asarray(np.arange(6) == position, jnp.float32),
            trace=True,
        )[1]
        return -float(states[position, 0, 0, 0, 0])

    np.testing.assert_allclose([moved(k) for k in range(6)], gain, rtol=1e-5)
    if solver is solvers.ancestral:
        np.testing.assert_allclose(gain, grid.beta / np.sqrt(1 - grid.beta), rtol=1e-6)


def test_followed_weights_do_not_overshoot():
    """Few steps with a large λ: Euler diverges, the followed gradient settles as with many."""
    settings = load_config("configs/twemoji2fluent.py").contrastive_sde
    settings.update(weight=0.0, content_weight=40.0)
    # The energy ‖y - x_t‖² and x0 = 0.7, on a network that predicts pure noise.
    term = methods.Term(energies.content(1, "neg_l2"))
    x0 = jnp.full((1, 4, 4, 3), 0.7)

    def result(steps, follow):
        grid = solvers.make_grid(SCHEDULE, 300, steps)
        gain = solvers.gain(solvers.ancestral, grid) if follow else None
        lambdas = methods.weights("contrastive_sde", settings, grid.index, gain)[:, 1:2]
        silent = methods.Noise(*[lambda *path: jnp.zeros_like(x0)] * 3)
        y, _ = methods.translate(
            x0,
            methods.Method((term,)),
            eps_fn=lambda y, i: y,
            grid=grid,
            noise=silent,
            weights=lambdas,
        )
        return float(y.mean())

    many = result(300, False)
    assert result(300, True) == pytest.approx(many, abs=0.01)
    assert abs(result(6, False) - many) > 1
    assert result(6, True) == pytest.approx(many, abs=0.1)


def test_levels_even_in_log_snr():
    log_snr = SCHEDULE.log_snr
    for start in (1, 2, 7, 250, 1000):
        for steps in {1, min(2, start), start // 3 + 1, max(start - 1, 1), start}:
            levels = solvers.indices(start, steps, log_snr)
            assert len(levels) == steps
            assert levels[0] == start - 1
            assert np.all(np.diff(levels) < 0)
            if steps > 1:
                assert levels[-1] == 0
    np.testing.assert_array_equal(solvers.indices(40, 40, log_snr), solvers.indices(40))
    levels = solvers.indices(1000, 8, log_snr)
    gaps = np.diff(log_snr[levels])
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.1)
    assert not np.array_equal(levels, solvers.indices(1000, 8))


# --- guidance ---


def test_guided_moments():
    """A quadratic energy keeps the Gaussian; its moments by the published step, in float64."""
    grid = solvers.make_grid(SCHEDULE, 120)
    weight, target = 3.0, np.linspace(-0.3, 0.8, 120, dtype=np.float32)
    mean, var = start = 0.2, 0.7
    expected = []
    for row, x_t in zip(zip(*grid, strict=True), target, strict=True):
        at = solvers.Grid(*(float(value) for value in row))
        # eps = slope * y + offset
        v = at.alpha_bar * STD**2 + 1 - at.alpha_bar
        slope = (1 - at.alpha_bar) ** 0.5 / v
        offset = -slope * at.alpha_bar**0.5 * MEAN
        alpha = 1 - at.beta
        of_eps = -at.beta / (1 - at.alpha_bar) ** 0.5 / alpha**0.5
        of_energy = -at.beta / alpha**0.5 * weight * 2
        gain = 1 / alpha**0.5 + of_eps * slope + of_energy
        mean = gain * mean + of_eps * offset - of_energy * float(x_t)
        var = gain**2 * var + at.posterior_std**2
        expected.append((mean, var))

    def guidance_fn(y, i, x_t):
        def energy(y):
            return weight * jnp.sum(energies.squared_distance(y, jnp.full(y.shape, x_t)))

        return jax.grad(energy)(y)

    found = moments(grid, start, guidance_fn=guidance_fn, per_step=target)
    np.testing.assert_allclose(np.transpose(found), expected, rtol=1e-4)
    assert abs(mean - moments(grid, start)[0][-1]) > 0.03


def method_of(*energy):
    return methods.Method(tuple(map(methods.Term, energy)))


X0 = np.tanh(normal(3, *IMAGES))


def drawn(grid, rounds=1):
    return methods.replay(normal(4, rounds, *IMAGES), normal(5, rounds, len(grid.index), *IMAGES))


def translate(method, grid, weights=None, noise=None, x0=X0, **kwargs):
    noise = drawn(grid) if noise is None else noise

    @jax.jit
    def run(x0, weights):
        return methods.translate(
            x0, method, eps_fn=some_eps, grid=grid, noise=noise, weights=weights, **kwargs
        )

    return run(x0, weights)


@pytest.mark.parametrize("solver", [solvers.ancestral, solvers.ddim(0.5), solvers.dpmpp_2m(0.6)])
def test_weight_zero_is_no_guidance(solver):
    grid = solvers.make_grid(SCHEDULE, 40)
    method = method_of(energies.content(2), energies.content(4, "cosine"))
    expected = translate(method_of(), grid, solver=solver)[0]
    zero = translate(method, grid, np.zeros((40, 2), np.float32), solver=solver)[0]
    np.testing.assert_array_equal(zero, expected)
    guided = translate(method, grid, np.ones((40, 2), np.float32), solver=solver)[0]
    assert np.abs(guided - expected).max() > 1e-3


def test_weights_act_at_their_own_level():
    """Weights that set in late leave the states before as they were."""
    grid = solvers.make_grid(SCHEDULE, 40, 20)
    weights = np.where(grid.index[:, None] < 20, 5, 0).astype(np.float32)
    method = method_of(energies.content(2))
    guided, unguided = (
        translate(method, grid, w, trace=True)[1][0] for w in (weights, 0 * weights)
    )
    first = int(np.argmax(grid.index < 20))
    np.testing.assert_array_equal(guided[:first], unguided[:first])
    assert np.all(np.abs(guided - unguided).max(axis=(1, 2, 3, 4))[first:] > 0)


# --- reverse: clipping, projection, trace, memory ---


@pytest.mark.parametrize("solver", [solvers.ancestral, solvers.ddim(0.0), solvers.dpmpp_2m(0.6)])
def test_clip(solver):
    def far_eps(y, i):  # predicts a clean image of -3, 0 or 2
        x0 = jnp.array([-3.0, 0.0, 2.0])[None, None, None] + 0 * y
        return schedules.x0_to_eps(y, x0, schedules.gather(SCHEDULE.alpha_bar, i.astype(int)))

    grid = solvers.make_grid(SCHEDULE, 100, 20)
    for clip, expected in ((False, [-3, 0, 2]), (True, [-1, 0, 1])):
        result = run_images(grid, solver, None, far_eps, clip=clip)[0]
        # The last step goes to the predicted clean image itself.
        np.testing.assert_allclose(result, np.broadcast_to(expected, IMAGES), atol=1e-4)


def test_clip_leaves_predictions_inside_alone():
    def inside(y, i):
        x0 = 0.9 * jnp.tanh(y)
        return schedules.x0_to_eps(y, x0, schedules.gather(SCHEDULE.alpha_bar, i.astype(int)))

    grid = solvers.make_grid(SCHEDULE, 100, 20)
    clipped, free = (
        run_images(grid, solvers.ancestral, None, inside, clip=clip)[0] for clip in (True, False)
    )
    np.testing.assert_allclose(clipped, free, atol=2e-5)


def test_projection_sees_each_step_s_result_and_row():
    grid = solvers.make_grid(SCHEDULE, 30, 6)
    extra = np.arange(6, dtype=np.float32)

    def project(y, at, extra):
        return jnp.full(y.shape, at.index + extra / 10 + 100 * at.last)

    _, states = run_images(
        grid, solvers.ancestral, None, project_fn=project, per_step=extra, trace=True
    )
    expected = grid.index + extra / 10 + 100 * grid.last
    np.testing.assert_allclose(
        states, np.broadcast_to(expected[:, None, None, None, None], states.shape)
    )


def test_network_and_noise_are_told_the_level():
    grid = solvers.make_grid(SCHEDULE, 30, 6)
    y = jnp.zeros(IMAGES)
    _, (states) = solvers.reverse(
        y,
        grid,
        eps_fn=lambda y, i: jnp.full(y.shape, i),
        solver=solvers.Solver(lambda y, eps, g, at, z, memory: (eps + 1000 * z, memory)),
        noise_fn=lambda position, i: jnp.full(y.shape, 100.0 * position + i),
        trace=True,
    )
    expected = grid.index + 1000 * (100 * np.arange(6) + grid.index)
    np.testing.assert_array_equal(states[:, 0, 0, 0, 0], expected)


def test_trace():
    grid = solvers.make_grid(SCHEDULE, 30, 6)
    expected, none = run_images(grid, solvers.ancestral)
    assert none is None
    result, states = run_images(grid, solvers.ancestral, trace=True)
    assert states.shape == (6, *IMAGES)
    np.testing.assert_array_equal(result, states[-1])
    np.testing.assert_allclose(result, expected, atol=1e-6)
    # Each state is where the rest of the run goes on from.
    rest = solvers.Grid(*(column[4:] for column in grid))
    z = normal(1, 6, *IMAGES)[4:]
    again, _ = solvers.reverse(
        states[3],
        rest,
        eps_fn=some_eps,
        solver=solvers.ancestral,
        noise_fn=lambda position, i: jnp.asarray(z)[position],
        guidance_fn=some_guidance,
    )
    np.testing.assert_allclose(again, result, atol=1e-5)


def test_memory_does_not_grow_with_the_steps():
    method = method_of(energies.content(4))

    def draw(*path):  # cheap to compile, and nothing that could be kept from before the run
        return jnp.cos(sum(path) + jnp.arange(2.0 * 32 * 32 * 3)).reshape(2, 32, 32, 3)

    def analyse(steps, trace):
        grid = solvers.make_grid(SCHEDULE, 100, steps)

        def run(x0, weights):
            noise = methods.Noise(draw, draw, draw)
            return methods.translate(
                x0, method, eps_fn=some_eps, grid=grid, noise=noise, weights=weights, trace=trace
            )

        x0 = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        weights = jax.ShapeDtypeStruct((steps, 1), jnp.float32)
        return jax.jit(run).lower(x0, weights).compile().memory_analysis()

    few, many, traced = analyse(10, False), analyse(100, False), analyse(100, True)
    state = 2 * 32 * 32 * 3 * 4
    assert abs(many.temp_size_in_bytes - few.temp_size_in_bytes) < 0.25 * state
    assert many.output_size_in_bytes == few.output_size_in_bytes
    assert traced.output_size_in_bytes >= many.output_size_in_bytes + 100 * state


# --- the loop around the solver ---


def test_rounds_go_on_from_the_result():
    grid = solvers.make_grid(SCHEDULE, 20)
    both = drawn(grid, rounds=2)
    _, states = translate(method_of(), grid, noise=both, rounds=2, trace=True)
    x = X0
    for r in (0, 1):
        noise = methods.replay(both.start(r)[None], normal(5, 2, 20, *IMAGES)[r : r + 1])
        x = translate(method_of(), grid, noise=noise, x0=x)[0]
        np.testing.assert_allclose(states[r, -1], x, atol=1e-5)


def test_start_from_noise_forgets_the_source():
    grid = solvers.make_grid(SCHEDULE, 1000, 5)
    for from_noise in (True, False):
        method = methods.Method(from_noise=from_noise)
        one, two = (translate(method, grid, x0=x)[0] for x in (X0, -X0))
        assert np.array_equal(one, two) == from_noise


def test_noise_belongs_to_the_image():
    @jax.jit
    def draw(seed, ids):
        noise = methods.noise_of_images(jax.random.key(seed), ids, IMAGES[1:])
        return noise.start(1), noise.step(1, 0, 5), noise.reference(1, 0, 5)

    ids = np.array([11, 12, 2**32 - 1], np.uint32)
    both, turned, other_seed = draw(0, ids), draw(0, ids[::-1]), draw(1, ids)
    for k in range(3):
        np.testing.assert_array_equal(turned[k][::-1], both[k])
        np.testing.assert_array_equal(draw(0, ids[1:2])[k], both[k][1:2])
        assert np.abs(other_seed[k] - both[k]).min(axis=0).max() > 0.1


def test_noise_differs_by_round_level_and_use():
    noise = methods.noise_of_images(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32), (16, 16, 3))
    draws = [noise.start(r) for r in (0, 1)]
    draws += [f(r, 0, i) for f in (noise.step, noise.reference) for r in (0, 1) for i in (5, 6)]
    flat = np.stack(draws).reshape(30, -1)  # also of the three images
    correlation = np.corrcoef(flat) - np.eye(30)
    assert np.abs(correlation).max() < 0.2  # 5 sigma of 768 values is 0.18
    assert flat.std() == pytest.approx(1, abs=0.02)
    # The position in the run is not part of it: runs with fewer steps share their noise.
    np.testing.assert_array_equal(noise.step(0, 0, 5), noise.step(0, 3, 5))
