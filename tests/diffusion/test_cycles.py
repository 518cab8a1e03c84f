"""CycleDiffusion and DDIB against their published code (tests/golden/methods)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vector_helpers as vectors
from diffusion.recording_helpers import (
    ENDS,
    EXACT,
    Recording,
    assert_pictures_are_read_as_published,
    respaced_grid,
)
from vector_helpers import METHODS, SETTINGS, arrays_of, draw

from cdsde import config, load_config
from cdsde.config import checks
from cdsde.diffusion import methods, noise, schedules, solvers
from cdsde.diffusion.levels import make_grid
from cdsde.diffusion.methods import composition
from cdsde.translation import compiled
from cdsde.weights.torch import convert

SCHEDULE = schedules.linear(*ENDS)
pytestmark = pytest.mark.usefixtures("exact_products")


@functools.cache
def pair():
    """The network of the vectors, and its weights `{"source": ..., "target": ...}`."""
    s, weights = SETTINGS["networks"]["pair"], {}
    fields = {"new_attention_order": s["use_new_attention_order"]}
    fields |= {name: s[name] for name in ("num_heads", "num_head_channels")}
    for name in ("source", "target"):
        apply, weights[name] = convert.load_torch(METHODS / s[f"{name}_file"], "adm", **fields)
    return (lambda params, x, i: apply(params, x, i)[..., :3]), weights


# 1000 steps from √ᾱ = 0.006 magnify where coefficients are rounded; these are not rounded as there.
OWN_ROUNDING = tuple(f"ddib/full_{name}" for name in ("target", "target_clipped", "reconstruction"))


def assert_near(actual, expected, name, rounded=True):
    """Each time by itself, relative to its own largest value."""
    key = "tolerance" if rounded and name not in OWN_ROUNDING else "tolerance_float64_coefficients"
    vectors.assert_near(actual, expected, name, key, np.abs(expected).max())


@pytest.mark.parametrize("file", ["cyclediffusion", "ddib"])
def test_pictures_are_read_as_published(file):
    assert_pictures_are_read_as_published(file)


class Program:
    """A method's compiled run from what both networks are made of, with what happens on the way.

    `network` is `(weights, x, i) -> ε`; `noise_of` makes the noise from the arrays of a call.
    """

    def __init__(self, method, settings, solver, network, noise_of, clip=False):
        self.settings, self.solver, self._method = settings, solver, methods.METHODS[method]
        self._recording = Recording()
        watch = self._recording.of
        invert = watch("inverted", self._method.invert(settings))
        watched = self._method._replace(invert=lambda settings: invert)
        own = solver._replace(posterior=watch("encoded", solver.posterior))

        def asked(name, weights):
            ask = lambda x, i: network(weights, x, i)  # noqa: E731
            return watch(name, ask, lambda eps, x, i: x)

        def go(up, down, x0, levels, arrays):
            return composition.translate(
                x0,
                watched,
                settings,
                {"source_score": asked("asked going up", up), "score": asked("asked", down)},
                levels,
                noise=noise_of(*arrays),
                solver=own,
                keep=10**6,
                clip=clip,
            )

        self._go = jax.jit(go)

    def __call__(self, x0, grid, up, down, *arrays):
        """`(y, states, what was recorded)`."""
        levels = composition.make_levels(self._method, self.settings, grid, self.solver)
        y, states = self._go(up, down, jnp.asarray(x0), levels, arrays)
        return y, states[0], self._recording.taken()


# --- DDIB ---


def no_noise():
    return noise.Noise(*(lambda *path: jnp.zeros(()) for _ in range(3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", "full"])
def test_ddib(name):
    arrays, (network, weights) = arrays_of("ddib"), pair()
    source, target = weights["source"], weights["target"]
    grid = respaced_grid(SETTINGS["ddib"][name]["respacing"])
    np.testing.assert_array_equal(grid.index[::-1], arrays[f"{name}_timesteps"])
    plain, clipped = (
        Program("ddib", config.base().ddib, solvers.ddim(0.0), network, no_noise, clip)
        for clip in (False, True)
    )

    def check(actual, what):
        assert_near(actual, arrays[f"{name}_{what}"], f"ddib/{name}_{what}")

    x0 = arrays[f"{name}_source"]
    y, states, seen = plain(x0, grid, source, target)
    ((latent, _),) = seen["inverted"]
    check(latent, "latent")
    check(y, "target")
    if f"{name}_encoder_states" in arrays:
        check(np.stack([*seen["asked going up"][1:], latent]), "encoder_states")
        check(states, "decoder_states")
    check(clipped(x0, grid, source, target)[0], "target_clipped")
    check(plain(x0, grid, source, source)[0], "reconstruction")
    # Back again, from the target to the source.
    y, _, seen = plain(arrays[f"{name}_target"], grid, target, source)
    check(seen["inverted"][0][0], "latent_2")
    check(y, "source_2")


def of_gaussian(domain, x, i):
    """ε of a domain of independent pixels, N(mean, deviation²): there the ODE is known."""
    mean, deviation = domain
    a = jnp.asarray(EXACT.alpha_bar, jnp.float32)[i.astype(jnp.int32)]
    variance = a * deviation**2 + 1 - a
    return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mean) / variance


@pytest.mark.parametrize(("start", "exact"), [(1000, True), (600, True), (600, False)])
def test_the_exact_cycle_of_ddib_comes_back(start, exact):
    """Of two Gaussian domains, where each way keeps (x - mean)/deviation of the level."""
    settings = config.base().ddib
    settings.exact = exact  # from 600, which is no noise, it is exact anyhow
    first, second = (0.3, 0.2), (-0.2, 0.4)
    x = 0.3 + 0.2 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    grid = make_grid(EXACT, start)
    translated = Program("ddib", settings, solvers.ddim(0.0), of_gaussian, no_noise)
    there, *_ = translated(x, grid, first, second)
    a = EXACT.alpha_bar[start - 1]
    latent = np.sqrt(a) * 0.3 + np.sqrt(a * 0.04 + 1 - a) * (x - 0.3) / 0.2
    wanted = -0.2 + 0.4 * (latent + np.sqrt(a) * 0.2) / np.sqrt(a * 0.16 + 1 - a)
    np.testing.assert_allclose(there, wanted, atol=0.02)
    np.testing.assert_allclose(translated(there, grid, second, first)[0], x, atol=0.02)


def test_the_way_up_has_the_order_of_the_solver():
    """To a latent that is known: twice the steps, a half or a quarter of the error."""
    settings = config.base().ddib
    settings.exact = True
    x = 0.3 + 0.2 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    a = EXACT.alpha_bar[599]
    latent = np.sqrt(a) * 0.3 + np.sqrt(a * 0.04 + 1 - a) * (x - 0.3) / 0.2

    def error(solver, steps):
        grid = make_grid(EXACT, 600, steps, "log_snr")
        *_, seen = Program("ddib", settings, solver, of_gaussian, no_noise)(
            x, grid, (0.3, 0.2), (-0.2, 0.4)
        )
        return float(np.abs(seen["inverted"][0][0] - latent).mean())

    for solver, factor in ((solvers.ddim(0.0), 2), (solvers.dpmpp_2m(0.0), 4)):
        assert 0.75 * factor < error(solver, 10) / error(solver, 20) < 1.5 * factor
    assert error(solvers.dpmpp_2m(0.0), 20) < error(solvers.ddim(0.0), 80)


def test_ddib_refines_what_it_gives_alone():
    """The refinement's levels are no part of the way up, and begin with the result perturbed."""
    settings = config.base().ddib
    domains = (0.3, 0.2), (-0.2, 0.4)
    x = 0.3 + 0.2 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    grid = make_grid(EXACT, 600, 30)

    def program():
        return Program("ddib", settings, solvers.ddim(0.0), of_gaussian, no_noise)

    alone, *_ = program()(x, grid, *domains)
    settings.refine = 200
    refined, states, _ = program()(x, grid, *domains)
    again = int((grid.index < 200).sum())
    assert len(states) == len(grid.index) + again and again > 3
    np.testing.assert_allclose(states[len(grid.index) - 1], alone, atol=1e-6)
    # Without noise, each state is nearer to the mean of the target's domain than a drawing is.
    assert np.abs(refined + 0.2).mean() < np.abs(alone + 0.2).mean()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"method": "ddib", "sample.eta": 1.0}, "follows an ODE"),
        ({"method": "ddib", "ddib.refine": 1001}, "refine is 1001; it must lie in 0..1000"),
        ({"method": "cyclediffusion", "sample.clip": True}, "config.sample.clip=False"),
        ({"method": "cyclediffusion", "sample.eta": 0.0}, "recovers the noise"),
        (
            {
                "method": "cyclediffusion",
                "sample.solver": "ancestral",
                "sample.variance": "learned",
            },
            "the posterior, whose variance is fixedsmall",
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
    for name, until in (("cat2dog", 505), ("wild2dog", 505), ("male2female", 525)):
        config = load_config(name, {"method": "sddm"}).sddm
        assert (config.until, config.blocks) == (until, 16)
    faces = load_config("male2female", {"method": "sddm"})
    assert faces.sample.variance != "learned"  # its network learned none
    ddib = load_config("cat2dog", {"method": "ddib"}).sample
    assert (ddib.solver, ddib.eta) == ("ddim", 0.0)
    for name, refine in (("cat2dog", 100), ("wild2dog", 150)):
        cycle = load_config(name, {"method": "cyclediffusion"})
        assert cycle.cyclediffusion.start == 850 and cycle.cyclediffusion.refine == refine
        assert (cycle.sample.solver, cycle.sample.eta, cycle.sample.clip) == ("ddim", 0.1, False)


@pytest.mark.parametrize(
    "changes, eta",
    [
        ({"method": "ddib"}, 0.0),
        ({"method": "sdedit"}, 1.0),
        ({"method": "sdedit", "sample.eta": 0.0}, 0.0),
        ({"method": "sdedit", "sample.solver": "ddim"}, 0.0),
        ({"method": "cyclediffusion"}, 0.1),
    ],
)
def test_how_much_noise_a_step_draws_follows_method_and_solver(changes, eta):
    config = load_config("gothic2mincho", changes)
    found = compiled.levels(config).coefficients
    config.sample.eta = eta
    jax.tree.map(np.testing.assert_array_equal, found, compiled.levels(config).coefficients)
    config.sample.eta = 0.5
    other = compiled.levels(config).coefficients
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, found, other)))


# --- CycleDiffusion ---


def published_ancestral():
    """The published step takes σ from tables in float64, and the posterior from float32."""
    beta, kept = EXACT
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


def times_of(c):
    """The times that numbers of steps stand for; the vectors' levels are these."""
    total, count = c["t_0"] + 1, c["custom_steps"]
    if total % count:
        return (np.linspace(0, 1, count) * c["t_0"]).astype(int)
    return np.arange(0, total, total // count)


class Cycle:
    """A run of the vectors; with `published`, its coefficients are rounded where theirs are."""

    def __init__(self, name, published=True):
        c = self.given = SETTINGS["cyclediffusion"][name]
        self.name, self.x0 = name, arrays_of("cyclediffusion")[f"{name}_x0"]
        times = times_of(c)[: c["es_steps"]]
        self.grid = make_grid(SCHEDULE, int(times[-1]) + 1, len(times))
        np.testing.assert_array_equal(self.grid.index[::-1], times)
        if published and self.of_ddim:  # the published DDIM forms β in float32
            beta = 1 - self.grid.alpha_bar / self.grid.next_alpha_bar
            self.grid = self.grid._replace(beta=beta)
        self.low, self.rounds = c["refine_steps"], c["refine_iterations"]
        self.program = program(name, published or self.of_ddim)

    @property
    def of_ddim(self):
        return "eta" in self.given

    def noises(self):
        """The published order: x_T and its refinements' like, the posterior's draws, the rest."""
        seed = SETTINGS["seeds"]["cycle" if self.name == "strided" else f"cycle_{self.name}"]
        of = lambda index: draw(seed, int(index), self.x0.shape)  # noqa: E731
        times, low = self.grid.index, self.grid.index[-self.low :]
        starts = np.stack([of(99999 - n) for n in range(self.rounds + 1)])
        refined = [of(2000 + 1000 * n + t) for n in range(self.rounds) for t in low]
        return starts, np.stack([*map(of, times), *refined])

    def __call__(self, up, down, starts, steps):
        """`(y, states, what was recorded)`."""
        weights = pair()[1]
        return self.program(self.x0, self.grid, weights[up], weights[down], starts, steps)


def replayed(starts, steps):
    """Steps by their position: each refinement goes on from the levels of the run."""
    step = lambda r, position, i: steps[position]  # noqa: E731
    return noise.Noise(lambda r: starts[r // composition.REFINEMENT], step, step)


@functools.cache
def program(name, published):
    c, settings = SETTINGS["cyclediffusion"][name], config.base().cyclediffusion
    low = int(times_of(c)[c["refine_steps"] - 1]) + 1
    settings.update(refine=low, refine_rounds=c["refine_iterations"])
    ancestral = published_ancestral if published else solvers.ancestral
    solver = solvers.ddim(c["eta"]) if "eta" in c else ancestral()
    return Program("cyclediffusion", settings, solver, pair()[0], replayed)


SLOW = pytest.mark.slow
GIVEN = "x0", "source_uint8", "keep", "timesteps"
APART = "coefficients", "as_published_result", "as_published_xT_level"


@pytest.mark.parametrize(
    "published", [True, pytest.param(False, id="with our coefficients", marks=SLOW)]
)
@pytest.mark.parametrize(
    "name", ["strided", *(pytest.param(n, marks=SLOW) for n in ("ddpm", "afhq"))]
)
def test_cyclediffusion(name, published):
    arrays, cycle = arrays_of("cyclediffusion"), Cycle(name, published)
    times, noises = cycle.grid.index, cycle.noises()
    count = len(times)
    y, states, seen = cycle("source", "target", *noises)
    ((x_t, z),) = seen["inverted"]
    _, same, _ = cycle("source", "source", *noises)
    found = {
        "z": np.stack([x_t, *z[: count - 1]]),
        "encoder_states": np.stack([x_t, *seen["encoded"]]),
        "decoder_states": states[:count],
        "before_refine": states[count - 1],
        "refine_states": np.stack([seen["asked"][count], y]),
        "result": (y + 1) / 2,
        "reconstruction": (same[count - 1] + 1) / 2,
    }
    if f"{name}_keep" in arrays:  # states before their steps, and no x_T in front of the noises
        kept = np.flatnonzero(np.isin(times, arrays[f"{name}_keep"]))
        np.testing.assert_array_equal(times[kept], arrays[f"{name}_keep"])
        before = np.stack(seen["asked"][:count])
        found |= {"decoder_states": before[kept], "eps": z[kept]}
        found["encoder_states"] = found["encoder_states"][kept]
    if f"{name}_timesteps" in arrays:
        np.testing.assert_array_equal(times, arrays[f"{name}_timesteps"])
    wanted = {k.removeprefix(f"{name}_") for k in arrays if k.startswith(f"{name}_")}
    for what in wanted - {*GIVEN, *APART}:
        expected, actual = arrays[f"{name}_{what}"], found[what]
        assert actual.shape == expected.shape
        pairs = zip(actual, expected, strict=True) if expected.ndim == 5 else [(actual, expected)]
        for one, other in pairs:
            assert_near(one, other, f"cyclediffusion/{name}_{what}", published)


@pytest.mark.parametrize("published", [True, pytest.param(False, id="with our coefficients")])
def test_the_coefficients_of_the_encoder(published):
    cycle = Cycle("strided", published)
    grid = jax.tree.map(lambda column: column[:-1], cycle.grid)  # the encoder ends above the last
    solver, zero, one = cycle.program.solver, np.zeros(()), np.ones(())
    eta = solver.coefficients(grid)
    of_noise = solver.posterior(zero, zero, grid, eta, one)
    of_eps = solver.posterior(np.sqrt(1 - grid.alpha_bar), zero, grid, eta, zero)
    found = np.stack([grid.alpha_bar, grid.next_alpha_bar, of_noise, of_eps], axis=1)
    name = "strided_coefficients"
    expected = arrays_of("cyclediffusion")[name]
    key = "tolerance" if published else "tolerance_float64_coefficients"
    vectors.assert_near(found, expected, f"cyclediffusion/{name}", key)


@pytest.mark.slow
def test_levels_as_published_without_their_correction():
    """The noises of the starts are such that ours perturbs to the published level."""
    arrays, cycle = arrays_of("cyclediffusion"), Cycle("strided")
    levels = [int(arrays["strided_as_published_xT_level"])] + [cycle.low - 1] * cycle.rounds
    own = [cycle.grid.index[0]] + [cycle.grid.index[-cycle.low]] * cycle.rounds
    starts, steps = cycle.noises()
    clean, count = cycle.x0, len(cycle.grid.index)
    for n, (level, of_ours) in enumerate(zip(levels, own, strict=True)):
        x = schedules.perturb(clean, starts[n], SCHEDULE.alpha_bar[level])
        starts[n] = schedules.x0_to_eps(x, clean, SCHEDULE.alpha_bar[of_ours])
        y, states, _ = cycle("source", "target", starts, steps)
        clean = states[count + n * cycle.low - 1]
    name = "strided_as_published_result"
    assert_near((y + 1) / 2, arrays[name], f"cyclediffusion/{name}")
