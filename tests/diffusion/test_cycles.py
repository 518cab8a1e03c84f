"""CycleDiffusion and DDIB against their published code (tests/golden/methods)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vector_helpers as vectors
from vector_helpers import EXACT, METHODS, SETTINGS, arrays_of, draw

from cdsde import config
from cdsde.diffusion import methods, noise, schedules, solvers
from cdsde.diffusion.levels import make_grid
from cdsde.diffusion.methods import composition
from cdsde.weights.torch import convert

SCHEDULE = schedules.linear()
pytestmark = pytest.mark.usefixtures("exact_products")


@pytest.fixture(scope="module")
def networks():
    pair = SETTINGS["networks"]["pair"]
    found = {}
    for name, file in (("source_score", "pair_source"), ("score", "pair_target")):
        apply, params = convert.load_torch(
            METHODS / f"{file}.safetensors", "adm", num_head_channels=pair["num_head_channels"]
        )
        found[name] = lambda x, i, apply=apply, params=params: apply(params, x, i)[..., :3]
    return found


# 1000 steps from √ᾱ = 0.006 magnify where coefficients are rounded; these are not rounded as there.
OWN_ROUNDING = ("ddib/full_target", "ddib/full_target_clipped")


def assert_near(actual, expected, name):
    """Each time by itself, relative to its own largest value."""
    key = "tolerance_float64_coefficients" if name in OWN_ROUNDING else "tolerance"
    vectors.assert_near(actual, expected, name, key, np.abs(expected).max())


def run(method, settings, networks, x0, grid, solver, noises, keep=0, clip=False):
    levels = composition.make_levels(method, settings, grid, solver)

    @jax.jit
    def go(x0, levels):
        return composition.translate(
            x0,
            method,
            settings,
            networks,
            levels,
            noise=noises,
            solver=solver,
            keep=keep,
            clip=clip,
        )

    return go(jnp.asarray(x0), levels), levels


NONE = noise.Noise(*(lambda *path: jnp.zeros(()) for _ in range(3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", "full"])
def test_ddib(networks, name):
    arrays = arrays_of("ddib")
    x0 = arrays[f"{name}_source"]
    method, settings = methods.METHODS["ddib"], config.base().ddib
    grid = make_grid(EXACT, 1000, 20 if name == "short" else None)
    np.testing.assert_array_equal(grid.index[::-1], arrays[f"{name}_timesteps"])
    solver = solvers.ddim(0.0)
    levels = composition.make_levels(method, settings, grid, solver)
    up = jax.jit(lambda x: method.invert(settings)(x, networks, levels.rows(), NONE, solver)[0])
    assert_near(up(x0), arrays[f"{name}_latent"], f"ddib/{name}_latent")
    (y, _), _ = run(method, settings, networks, x0, grid, solver, NONE)
    assert_near(y, arrays[f"{name}_target"], f"ddib/{name}_target")
    (y, _), _ = run(method, settings, networks, x0, grid, solver, NONE, clip=True)
    assert_near(y, arrays[f"{name}_target_clipped"], f"ddib/{name}_target_clipped")


def cycle_noise(seed, shape, rounds):
    """The published order: x_T, the posterior's draws by time, and each refinement's own."""
    times = np.stack([draw(seed, t, shape) for t in range(1000)])
    starts = [draw(seed, 99999 - n, shape) for n in range(rounds + 1)]
    refined = [[draw(seed, 2000 + 1000 * n + t, shape) for t in range(150)] for n in range(rounds)]
    starts, times, refined = (jnp.asarray(a) for a in (starts, times, refined))

    def step(r, position, i):
        n = r // composition.REFINEMENT
        return jnp.where(n > 0, refined[jnp.maximum(n - 1, 0), jnp.minimum(i, 149)], times[i])

    return noise.Noise(lambda r: starts[r // composition.REFINEMENT], step, step)


def published_ancestral():
    """The published step takes σ from tables in float64, and the posterior from float32."""
    beta = np.linspace(1e-4, 2e-2, 1000)
    kept = np.cumprod(1 - beta)
    small = np.maximum(beta * (1 - np.append(1, kept[:-1])) / (1 - kept), 1e-20)
    plain = solvers.ancestral()

    def numbers(grid):
        std = np.exp(0.5 * np.log(small[grid.index])) * ~grid.last
        return plain.coefficients(grid)._replace(std=std.astype(np.float32))

    def posterior(y, x0, level, _, z):
        noise = 1 - level.alpha_bar
        of_clean = jnp.sqrt(level.next_alpha_bar) * level.beta / noise
        of_state = jnp.sqrt(1 - level.beta) * (1 - level.next_alpha_bar) / noise
        std = jnp.sqrt(level.beta * (1 - level.next_alpha_bar) / noise)
        return of_clean * x0 + of_state * y + std * z

    return plain._replace(coefficients=numbers, stochastic=numbers, posterior=posterior)


CYCLES = {  # name: (start, steps, refine, rounds, solver)
    "strided": (801, 17, 150, 1, solvers.ddim(0.1)),
    "ddpm": (6, None, 3, 2, published_ancestral()),
    "afhq": (850, None, 100, 1, solvers.ddim(0.1)),
}


@pytest.mark.parametrize(
    "name", ["strided", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ddpm", "afhq"))]
)
def test_cyclediffusion(networks, name):
    start, steps, refine, rounds, solver = CYCLES[name]
    arrays = arrays_of("cyclediffusion")
    x0 = arrays[f"{name}_x0"]
    settings = config.base().cyclediffusion
    settings.update(start=start, refine=refine, refine_rounds=rounds)
    method = methods.METHODS["cyclediffusion"]
    grid = make_grid(SCHEDULE, start, steps)
    if name != "ddpm":  # the published DDIM forms β in float32
        grid = grid._replace(beta=1 - grid.alpha_bar / grid.next_alpha_bar)
    noises = cycle_noise(SETTINGS["seeds"]["cycle" if name == "strided" else f"cycle_{name}"],
                         x0.shape, rounds)  # fmt: skip
    (y, states), levels = run(method, settings, networks, x0, grid, solver, noises, keep=10**6)
    count = len(grid.index)
    y, before = (y + 1) / 2, states[0, count - 1]
    if name == "strided":
        np.testing.assert_array_equal(grid.index, arrays["strided_timesteps"])
        for k, expected in enumerate(arrays["strided_decoder_states"]):
            assert_near(states[0, k], expected, "cyclediffusion/strided_decoder_states")
    else:
        assert_near(before, arrays[f"{name}_before_refine"], f"cyclediffusion/{name}_before_refine")
    assert_near(y, arrays[f"{name}_result"], f"cyclediffusion/{name}_result")
    if name != "afhq":
        recover = method.invert(settings)
        up = jax.jit(lambda x: recover(x, networks, levels.rows(), noises, solver))
        x_t, z = up(jnp.asarray(x0))
        for k, expected in enumerate(arrays[f"{name}_z"]):
            actual = x_t if k == 0 else z[k - 1]
            assert_near(actual, expected, f"cyclediffusion/{name}_z")
    same = {"score": networks["source_score"], "source_score": networks["source_score"]}
    settings.refine_rounds = 0
    (y, _), _ = run(method, settings, same, x0, grid, solver, noises)
    name = f"{name}_reconstruction"
    assert_near((y + 1) / 2, arrays[name], f"cyclediffusion/{name}")
