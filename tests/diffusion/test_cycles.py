"""CycleDiffusion and DDIB against their published code (tests/golden/methods)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vector_helpers as vectors
from vector_helpers import EXACT, METHODS, SETTINGS, arrays_of, draw

from cdsde import config, load_config
from cdsde.config import checks
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
OWN_ROUNDING = tuple(f"ddib/full_{name}" for name in ("target", "target_clipped", "reconstruction"))


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
    respacing = SETTINGS["ddib"][name]["respacing"]
    grid = make_grid(EXACT, 1000, int(respacing) if respacing else None)
    np.testing.assert_array_equal(grid.index[::-1], arrays[f"{name}_timesteps"])
    method, settings, solver = methods.METHODS["ddib"], config.base().ddib, solvers.ddim(0.0)
    levels = composition.make_levels(method, settings, grid, solver)
    source, target = networks["source_score"], networks["score"]

    @jax.jit
    def latent(x, of_target):
        up = lambda own: method.invert(settings)(  # noqa: E731
            x, {"source_score": own}, levels.rows(), NONE, solver
        )[0]
        return jax.lax.cond(of_target, lambda: up(target), lambda: up(source))

    def check(actual, what):
        assert_near(actual, arrays[f"{name}_{what}"], f"ddib/{name}_{what}")

    def translated(x, up, down, keep=0, clip=False):
        own = {"source_score": up, "score": down}
        return run(method, settings, own, x, grid, solver, NONE, keep, clip)[0]

    x0 = arrays[f"{name}_source"]
    check(latent(x0, False), "latent")
    y, states = translated(x0, source, target, keep=len(grid.index))
    check(y, "target")
    check(translated(x0, source, target, clip=True)[0], "target_clipped")
    check(translated(x0, source, source)[0], "reconstruction")
    # Back again, from the target to the source.
    found = arrays[f"{name}_target"]
    check(latent(found, True), "latent_2")
    check(translated(found, target, source)[0], "source_2")
    if name == "short":
        check(states[0], "decoder_states")


def of_gaussian(mean, deviation):
    """ε of a domain of independent pixels, N(mean, deviation²): there the ODE is known."""

    def eps(x, i):
        a = jnp.asarray(EXACT.alpha_bar, jnp.float32)[i.astype(jnp.int32)]
        variance = a * deviation**2 + 1 - a
        return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mean) / variance

    return eps


@pytest.mark.parametrize(("start", "exact"), [(1000, True), (600, True), (600, False)])
def test_the_exact_cycle_of_ddib_comes_back(start, exact):
    """Of two Gaussian domains, where each way keeps (x - mean)/deviation of the level."""
    settings = config.base().ddib
    settings.exact = exact  # from 600, which is no noise, it is exact anyhow
    first, second = of_gaussian(0.3, 0.2), of_gaussian(-0.2, 0.4)
    x = 0.3 + 0.2 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    grid, method = make_grid(EXACT, start), methods.METHODS["ddib"]

    def translated(x, up, down):
        own = {"source_score": up, "score": down}
        return run(method, settings, own, x, grid, solvers.ddim(0.0), NONE)[0][0]

    there = translated(x, first, second)
    a = EXACT.alpha_bar[start - 1]
    latent = np.sqrt(a) * 0.3 + np.sqrt(a * 0.04 + 1 - a) * (x - 0.3) / 0.2
    wanted = -0.2 + 0.4 * (latent + np.sqrt(a) * 0.2) / np.sqrt(a * 0.16 + 1 - a)
    np.testing.assert_allclose(there, wanted, atol=0.02)
    np.testing.assert_allclose(translated(there, second, first), x, atol=0.02)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"method": "ddib", "sample.eta": 1.0}, "follows an ODE"),
        ({"method": "cyclediffusion", "sample.clip": True}, "config.sample.clip=False"),
        ({"method": "cyclediffusion", "sample.eta": 0.0}, "recovers the noise"),
        (
            {
                "method": "cyclediffusion",
                "sample.solver": "ancestral",
                "sample.variance": "learned",
            },
            "a deviation that is known",
        ),
        ({"method": "sddm", "sddm.start": 150}, "lower config.sddm.until"),
        ({"method": "sddm", "sample.start": 100}, "lower config.sddm.until"),
    ],
)
def test_settings_that_would_lose_the_source_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        checks.validate(load_config("twemoji2fluent", changes))


def test_methods_bring_their_published_settings():
    sddm = load_config("cat2dog", {"method": "sddm"}).sample
    assert (sddm.solver, sddm.steps, sddm.clip, sddm.variance) == (
        "ancestral",
        100,
        True,
        "learned",
    )
    faces = load_config("male2female", {"method": "sddm"})
    assert faces.sample.variance == "fixedsmall"  # the network learned none
    for name, refine in (("cat2dog", 100), ("wild2dog", 150)):
        cycle = load_config(name, {"method": "cyclediffusion"})
        assert cycle.cyclediffusion.start == 850 and cycle.cyclediffusion.refine == refine
        assert (cycle.sample.solver, cycle.sample.eta, cycle.sample.clip) == ("ddim", 0.1, False)


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


SOLVERS = {"strided": solvers.ddim(0.1), "ddpm": published_ancestral(), "afhq": solvers.ddim(0.1)}


def levels_of(name):
    """Start, number of steps (None: every level), refinement's start and rounds."""
    c = SETTINGS["cyclediffusion"][name]
    total, custom, taken = c["t_0"] + 1, c["custom_steps"], c["es_steps"]
    assert c.get("eta", 0.1) == 0.1
    if custom == total:
        return taken, None, c["refine_steps"], c["refine_iterations"]
    times = np.arange(0, total, total // custom)
    # The vectors' levels are the times that the numbers of steps stand for.
    return (
        int(times[taken - 1]) + 1,
        taken,
        int(times[c["refine_steps"]]),
        c["refine_iterations"],
    )


@pytest.mark.parametrize(
    "name", ["strided", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ddpm", "afhq"))]
)
def test_cyclediffusion(networks, name):
    (start, steps, refine, rounds), solver = levels_of(name), SOLVERS[name]
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
