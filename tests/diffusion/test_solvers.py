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
from reverse_helpers import (
    IMAGES,
    SCHEDULE,
    go_down,
    make_grid,
    normal,
    run_images,
    some_eps,
    some_guidance,
)

from cdsde.diffusion import schedules, solvers
from cdsde.diffusion.levels import Grid
from cdsde.diffusion.levels import make_grid as grid_of

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
MEAN, STD = 0.4, 0.5
ANCESTRAL = solvers.ancestral()
ALL = [ANCESTRAL, solvers.ddim(0.5), solvers.dpmpp_2m(0.6)]


def exact_eps(y, i, mean=MEAN, std=STD):
    alpha_bar = schedules.gather(SCHEDULE.alpha_bar, i.astype(int))
    variance = alpha_bar * std**2 + 1 - alpha_bar
    return jnp.sqrt(1 - alpha_bar) * (y - jnp.sqrt(alpha_bar) * mean) / variance


def marginal(i, mean=MEAN, std=STD):
    """Exact mean and variance of the perturbed data at index i; -1 is the data."""
    alpha_bar = 1.0 if i < 0 else float(SCHEDULE.alpha_bar[i])
    return alpha_bar**0.5 * mean, alpha_bar * std**2 + 1 - alpha_bar


def probe(grid, eps_fn=exact_eps, solver=None, **options):
    """The affine map to the state after each step: its (offset, gain of start, gains of noises)."""
    steps = len(grid.index)
    y = jnp.zeros((1, 1, steps + 2, 1)).at[0, 0, 1, 0].set(1.0)
    _, states = go_down(
        y,
        grid,
        solver or ANCESTRAL,
        eps_fn,
        lambda position, i: jnp.zeros(y.shape).at[0, 0, position + 2, 0].set(1.0),
        keep=steps,
        **options,
    )
    lines = np.asarray(states, np.float64).reshape(steps, steps + 2)
    return lines[:, 0], lines[:, 1] - lines[:, 0], lines[:, 2:] - lines[:, :1]


def moments(grid, start=None, **kwargs):
    """Mean and variance of the states after each step, from the exact marginal or `start`."""
    offset, gain, noises = probe(grid, **kwargs)
    mean, variance = marginal(int(grid.index[0])) if start is None else start
    return offset + gain * mean, gain**2 * variance + np.sum(noises**2, axis=1)


# --- Gaussian data ---


@pytest.mark.parametrize("start", [1000, 500])
def test_ancestral_reaches_the_data(start):
    for variance in ("fixedsmall", "fixedlarge"):
        mean, var = moments(make_grid(start), solver=solvers.ancestral(variance))
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
    grid, solver = make_grid(300, steps), solvers.ancestral(variance)
    eps_fn = functools.partial(exact_eps, mean=mean, std=std)
    levels = np.append(grid.index[1:], -1)
    expected = np.array([marginal(int(i), mean, std) for i in levels]).T
    found = moments(grid, marginal(299, mean, std), eps_fn=eps_fn, solver=solver)
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
        solver = solvers.ddim() if name == "ddim" else solvers.ancestral(name)
        mean, var = moments(make_grid(500, steps), solver=solver)
        assert mean[-1] == pytest.approx(MEAN, abs=1e-5)
        errors.append(abs(var[-1] ** 0.5 - STD))
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all((ratios > 1.4) & (ratios < 2.4)), ratios
    assert errors[-1] < 0.012


def test_ddim_is_the_probability_flow():
    # Its exact solution keeps each value's place in the distribution.
    grid = make_grid(500)
    offset, gain, noises = probe(grid, solver=solvers.ddim())
    assert not np.any(noises)
    mean, variance = marginal(499)
    assert gain[-1] == pytest.approx(STD / variance**0.5, rel=4e-3)
    assert offset[-1] + gain[-1] * mean == pytest.approx(MEAN, abs=1e-5)


# --- DDIM and ancestral ---


@pytest.mark.parametrize("steps", [None, 13])
def test_ddim_with_eta_one_is_ancestral(steps):
    grid = make_grid(60, steps)
    expected = run_images(grid, ANCESTRAL)[0]
    np.testing.assert_allclose(run_images(grid, solvers.ddim(1.0))[0], expected, atol=2e-5)
    for eta in (0.0, 0.5):
        assert np.abs(run_images(grid, solvers.ddim(eta))[0] - expected).max() > 0.01
    # Guidance is in it.
    unguided = run_images(grid, ANCESTRAL, None)[0]
    assert np.abs(unguided - expected).max() > 0.01


def test_ddim_without_eta_ignores_the_noise():
    _, _, noises = probe(make_grid(60, 13), solver=solvers.ddim(0.0))
    assert not np.any(noises)
    assert np.any(probe(make_grid(60, 13), solver=solvers.ddim(0.5))[2])


@pytest.mark.parametrize("solver", ALL)
def test_guidance_is_a_shift_of_the_score(solver):
    """Lowering an energy with gradient g is the same as predicting ε + √(1-ᾱ) g."""
    grid = make_grid(60, 13)

    def shifted_eps(y, i):
        alpha_bar = schedules.gather(SCHEDULE.alpha_bar, i.astype(int))
        g = some_guidance(y, i, None, None)
        return some_eps(y, i) + jnp.sqrt(1 - alpha_bar) * g

    guided = run_images(grid, solver)[0]
    shifted = run_images(grid, solver, None, shifted_eps)[0]
    np.testing.assert_allclose(guided, shifted, atol=3e-5)


@pytest.mark.parametrize("solver", ALL)
def test_last_step_adds_no_noise(solver):
    grid = make_grid(1)
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
        grid = grid_of(schedule, 50_000, steps + 1, spacing="log_snr")
        a, b = schedule.alpha_bar[49_999], schedule.alpha_bar[0]
        start = a**0.5 * MEAN, a * STD**2 + 1 - a
        mean, var = moments(grid, start, eps_fn=eps_fn, solver=solver)
    exact = b**0.5 * MEAN, (b * STD**2 + 1 - b) ** 0.5
    return abs(mean[-2] - exact[0]), abs(var[-2] ** 0.5 - exact[1])


@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_every_solver_is_of_the_order_that_it_declares(name):
    """Half the step, 2^-order of the error."""
    solver = solvers.make(name, eta=0.0, variance="fixedsmall")
    errors = [errors_at_level_0(solver, steps)[1] for steps in (40, 80, 160)]
    assert errors[1] / errors[2] == pytest.approx(2**solver.order, rel=0.1)


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
        grid = make_grid(60, steps)
        found, first = (
            run_images(grid, solver, keep=steps)[1]
            for solver in (solvers.dpmpp_2m(eta), solvers.ddim(eta))
        )
        np.testing.assert_allclose(found, first, atol=2e-5)
    grid = make_grid(60, 5)
    found, first = (run_images(grid, make(eta))[0] for make in (solvers.dpmpp_2m, solvers.ddim))
    assert np.abs(found - first).max() > 0.01


@pytest.mark.parametrize(
    "solver", [ANCESTRAL, solvers.ddim(0.0), solvers.ddim(1.0), solvers.dpmpp_2m(0.0)]
)
def test_gain_is_what_guidance_moves(solver):
    grid = make_grid(400, 6, spacing="log_snr")
    gain = solvers.gain(solver, grid)
    y = jnp.zeros((1, 1, 1, 1))

    def moved(position):
        # A gradient in one step only, and what the state has become right after it.
        states = go_down(
            y,
            grid,
            solver,
            lambda y, i: jnp.zeros_like(y),
            lambda position, i: y,
            guidance_fn=lambda y, i, at, extra: jnp.full_like(y, extra),
            extra=jnp.asarray(np.arange(6) == position, jnp.float32),
            keep=6,
        )[1]
        return -float(states[position, 0, 0, 0, 0])

    np.testing.assert_allclose([moved(k) for k in range(6)], gain, rtol=1e-5)
    if solver is ANCESTRAL:
        np.testing.assert_allclose(gain, grid.beta / np.sqrt(1 - grid.beta), rtol=1e-6)


def test_coefficients_are_the_published_ones():
    with np.load(GOLDEN / "schedule.npz") as arrays:
        tables = {k: v[::-1] for k, v in arrays.items()}
    grid = make_grid(1000)
    for variance in ("fixedsmall", "fixedlarge"):
        solver = solvers.ancestral(variance)
        std = np.exp(tables[f"logvar_{variance}"].astype(np.float64) / 2)
        found = solver.coefficients(grid).std
        np.testing.assert_allclose(found[:-1], std[:-1], rtol=1e-6)
        assert found[-1] == 0

    def response(*arguments):
        """How each step answers to constant images y, ε, g and z."""
        images = [np.full((1, 1, 1, 1), value, np.float32) for value in arguments]
        y, eps, guidance, z = images
        apply = jax.jit(jax.vmap(lambda at, c: solver.step(y, eps, guidance, at, c, z, ())[0]))
        return np.asarray(apply(grid, solver.coefficients(grid))).ravel()

    np.testing.assert_allclose(response(1, 0, 0, 0), tables["inv_sqrt_alphas"], rtol=1e-6)
    np.testing.assert_allclose(response(0, 0, 1, 0), -tables["weight_energy"], rtol=1e-6)
    of_eps = -tables["weighted_score"] * tables["inv_sqrt_alphas"]
    np.testing.assert_allclose(response(0, 1, 0, 0), of_eps, rtol=2e-6)
    np.testing.assert_array_equal(response(0, 0, 0, 1), solver.coefficients(grid).std)


# --- reverse: clipping, projection, trace, memory ---


@pytest.mark.parametrize("solver", ALL)
def test_clip(solver):
    def far_eps(y, i):  # predicts a clean image of -3, 0 or 2
        x0 = jnp.array([-3.0, 0.0, 2.0])[None, None, None] + 0 * y
        return schedules.x0_to_eps(y, x0, schedules.gather(SCHEDULE.alpha_bar, i.astype(int)))

    grid = make_grid(100, 20)
    for clip, expected in ((False, [-3, 0, 2]), (True, [-1, 0, 1])):
        result = run_images(grid, solver, None, far_eps, clip=clip)[0]
        # The last step goes to the predicted clean image itself.
        np.testing.assert_allclose(result, np.broadcast_to(expected, IMAGES), atol=1e-4)


def test_clip_leaves_predictions_inside_alone():
    def inside(y, i):
        x0 = 0.9 * jnp.tanh(y)
        return schedules.x0_to_eps(y, x0, schedules.gather(SCHEDULE.alpha_bar, i.astype(int)))

    grid = make_grid(100, 20)
    clipped, free = (
        run_images(grid, ANCESTRAL, None, inside, clip=clip)[0] for clip in (True, False)
    )
    np.testing.assert_allclose(clipped, free, atol=2e-5)


def test_projection_sees_each_step_s_result_and_row():
    grid = make_grid(30, 6)

    def project(y, position, at):
        return jnp.full(y.shape, at.index + position / 10 + 100 * at.last)

    _, states = run_images(grid, ANCESTRAL, None, project_fn=project, keep=6)
    expected = grid.index + np.arange(6) / 10 + 100 * grid.last
    np.testing.assert_allclose(
        states, np.broadcast_to(expected[:, None, None, None, None], states.shape)
    )


def test_network_and_noise_are_told_the_level():
    grid = make_grid(30, 6)
    y = jnp.zeros(IMAGES)
    told = solvers.Solver(
        1,
        lambda y, eps, g, at, c, z, memory: (eps + 1000 * z, memory),
        lambda g: (),
        lambda g: (),
    )
    _, states = go_down(
        y,
        grid,
        told,
        lambda y, i: jnp.full(y.shape, i),
        lambda position, i: jnp.full(y.shape, 100.0 * position + i),
        keep=6,
    )
    expected = grid.index + 1000 * (100 * np.arange(6) + grid.index)
    np.testing.assert_array_equal(states[:, 0, 0, 0, 0], expected)


def test_states_that_are_kept():
    grid = make_grid(30, 6)
    expected, none = run_images(grid, ANCESTRAL)
    assert none is None
    result, states = run_images(grid, ANCESTRAL, keep=6)
    assert states.shape == (6, *IMAGES)
    np.testing.assert_array_equal(result, states[-1])
    np.testing.assert_allclose(result, expected, atol=1e-6)
    np.testing.assert_allclose(run_images(grid, ANCESTRAL, keep=3)[1], states[1::2], atol=1e-6)
    assert run_images(grid, ANCESTRAL, keep=99)[1].shape == (6, *IMAGES)
    # Each state is where the rest of the run goes on from.
    rest = Grid(*(column[4:] for column in grid))
    z = jnp.asarray(normal(1, 6, *IMAGES)[4:])
    noise_fn = lambda position, i: z[position]  # noqa: E731
    again, _ = go_down(states[3], rest, ANCESTRAL, some_eps, noise_fn, guidance_fn=some_guidance)
    np.testing.assert_allclose(again, result, atol=1e-5)


def test_frames():
    assert solvers.frames(6, 3).tolist() == [3, 0, 3, 1, 3, 2]
    assert solvers.frames(7, 7).tolist() == list(range(7))
