"""Methods around a solver: guidance, weights at each level, projection, rounds, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from reverse_helpers import IMAGES, SCHEDULE, make_grid, normal, some_eps

from cdsde.config import base
from cdsde.diffusion import energies, methods, noise, schedules, solvers
from cdsde.diffusion.methods import composition
from cdsde.diffusion.methods.method import Method, Term

X0 = np.tanh(normal(3, *IMAGES))
ANCESTRAL = solvers.ancestral()
ALL = [ANCESTRAL, solvers.ddim(0.5), solvers.dpmpp_2m(0.6)]


def method_of(*parts: tuple, **fields) -> Method:
    """A method of (energy, weight) pairs."""
    terms = tuple(Term(lambda networks, e=e: e, weight) for e, weight in parts)
    return Method("test", "Test", {}, terms=lambda settings: terms, **fields)


def drawn(grid, rounds=1):
    steps = normal(5, rounds, len(grid.index), *IMAGES)
    return noise.replay(normal(4, rounds, *IMAGES), steps)


def translate(method, grid, given=None, x0=X0, solver=ANCESTRAL, settings=None, **options):
    settings = ConfigDict() if settings is None else settings
    levels = composition.make_levels(method, settings, grid, solver)

    @jax.jit
    def run(x0, levels):
        return composition.translate(
            x0,
            method,
            settings,
            {"score": some_eps},
            levels,
            noise=drawn(grid) if given is None else given,
            solver=solver,
            **options,
        )

    return run(x0, levels)


# --- weights ---


@pytest.mark.parametrize("solver", ALL)
def test_the_contrast_of_score_networks_moves_the_predicted_noise(solver):
    """λ_s times it is the target's network plus λ_s times its difference to the source's."""
    weight, grid = 0.75, make_grid(40)

    def other_eps(y, i):
        return jnp.sin(3 * y) + 0.1

    def away(y, i):
        eps = some_eps(y, i)
        return eps + weight * (eps - other_eps(y, i))

    c = base().contrastive_sde
    c.update(weight=0.0, content_weight=0.0, factor=2, score_weight=weight)
    method = methods.METHODS["contrastive_sde"]
    assert method.needed(c) == ("score", "encoder", "source_score")
    networks = {"score": some_eps, "source_score": other_eps, "encoder": lambda x, i, space: x}

    def run(method, settings, networks):
        levels = composition.make_levels(method, settings, grid, solver)
        return jax.jit(
            lambda x0: composition.translate(
                x0, method, settings, networks, levels, noise=drawn(grid), solver=solver
            )
        )(X0)[0]

    expected = run(method_of(), ConfigDict(), {"score": away})
    found = run(method, c, networks)
    assert np.abs(expected - run(method_of(), ConfigDict(), {"score": some_eps})).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("solver", ALL)
def test_weight_zero_is_no_guidance(solver):
    grid = make_grid(40)
    parts = energies.content(2), energies.content(4, "cosine")
    expected = translate(method_of(), grid, solver=solver)[0]
    zero = translate(method_of(*((e, 0.0) for e in parts)), grid, solver=solver)[0]
    np.testing.assert_array_equal(zero, expected)
    guided = translate(method_of(*((e, 1.0) for e in parts)), grid, solver=solver)[0]
    assert np.abs(guided - expected).max() > 1e-3


def test_weights_act_at_their_own_level():
    """Weights that set in late leave the states before as they were."""
    grid = make_grid(40, 20)
    late = method_of((energies.content(2), lambda index: np.where(index < 20, 5, 0)))
    never = method_of((energies.content(2), 0.0))
    guided, unguided = (translate(m, grid, keep=20)[1][0] for m in (late, never))
    first = int(np.argmax(grid.index < 20))
    np.testing.assert_array_equal(guided[:first], unguided[:first])
    assert np.all(np.abs(guided - unguided).max(axis=(1, 2, 3, 4))[first:] > 0)


def test_gradients_are_summed_unless_the_method_combines_them():
    grid = make_grid(40, 10)
    parts = (energies.content(2), 3.0), (energies.content(4, "cosine"), 20.0)
    expected = translate(method_of(*parts), grid)[0]
    summed = method_of(*parts, combine=lambda gradients, y, i: sum(gradients))
    np.testing.assert_allclose(translate(summed, grid)[0], expected, atol=1e-5)
    first = method_of(*parts, combine=lambda gradients, y, i: gradients[0])
    alone = translate(method_of(parts[0]), grid)[0]
    np.testing.assert_allclose(translate(first, grid)[0], alone, atol=1e-5)


def test_followed_weights_do_not_overshoot():
    """Few steps with a large λ: Euler diverges, the followed gradient settles as with many."""
    # The energy ‖y - x_t‖² and x0 = 0.7, on a network that predicts pure noise.
    term = Term(lambda networks: energies.content(1, "neg_l2"), 40.0, quadratic=True)
    method = Method("test", "Test", {}, terms=lambda settings: (term,))
    x0 = jnp.full((1, 4, 4, 3), 0.7)
    silent = noise.Noise(*[lambda *path: jnp.zeros_like(x0)] * 3)

    def result(steps, follow):
        levels = composition.make_levels(method, None, make_grid(300, steps), ANCESTRAL, follow)
        networks = {"score": lambda y, i: y}
        y, _ = composition.translate(
            x0, method, None, networks, levels, noise=silent, solver=ANCESTRAL
        )
        return float(y.mean())

    many = result(300, False)
    assert result(300, True) == pytest.approx(many, abs=0.01)
    assert abs(result(6, False) - many) > 1
    assert result(6, True) == pytest.approx(many, abs=0.1)


def test_steps_between_are_not_guided():
    """Every third step is guided, three times as strongly, and the others skip the energies."""
    guided = [0, 3, 6, 9]

    def energy(y, x_t, i):  # not a number at the levels of the other steps
        fine = jnp.isin(i, grid.index[guided].astype(np.float32))
        return jnp.where(fine, 1.0, jnp.nan) * jnp.sum(y, axis=(1, 2, 3))

    grid = make_grid(300, 10)
    term = Term(lambda networks: energy, lambda index: 1e-3 * index)
    method = Method("test", "Test", {}, terms=lambda settings: (term,))
    levels = composition.make_levels(method, None, grid, ANCESTRAL, every=3)
    np.testing.assert_allclose(levels.weights[guided, 0], 3e-3 * grid.index[guided], rtol=1e-6)
    assert not np.delete(levels.weights, guided, axis=0).any()
    x0 = jnp.full((1, 4, 4, 3), 0.7)
    silent = noise.Noise(*[lambda *path: jnp.zeros_like(x0)] * 3)
    y, _ = composition.translate(
        x0, method, None, {"score": lambda y, i: y}, levels, noise=silent, solver=ANCESTRAL
    )
    assert np.isfinite(y).all()


def test_levels_outside_the_interval_are_not_guided():
    grid, settings = make_grid(300, 10), ConfigDict()
    inside = (100 <= grid.index) & (grid.index < 200)
    method = method_of((energies.content(2), 2.0), contrast=lambda settings: 0.5)
    levels = composition.make_levels(method, settings, grid, ANCESTRAL, between=(100, 200))
    np.testing.assert_array_equal(levels.weights[:, 0], 2.0 * inside)
    np.testing.assert_array_equal(levels.contrast, 0.5 * inside)
    assert inside.any() and not inside.all()


# --- every method ---


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_a_method_says_all_that_programs_ask_of_it(name):
    method, settings = methods.METHODS[name], base()[name]
    assert method.name == name and method.needed(settings)[0] == "score" and method.title
    assert set(settings) == set(method.settings) and "start" in method.changeable()
    grid = make_grid(5)
    levels = composition.make_levels(method, settings, grid, ANCESTRAL)
    refined = 5 * method.refine(settings)[1]  # all five levels lie below the refinement's start
    assert levels.weights.shape == (5 + refined, len(method.terms(settings)))
    assert levels.weights.dtype == np.float32
    # What the page shows can be changed without compiling.
    shown = {key for key, setting in method.settings.items() if setting.slider}
    assert shown <= set(method.changeable())


def test_start_from_noise_forgets_the_source():
    grid = make_grid(1000, 5)
    for from_noise in (True, False):
        settings = base().ilvr
        settings.update(from_noise=from_noise, factor=4)
        start = methods.METHODS["ilvr"].start
        method = method_of(start=start)
        one, two = (translate(method, grid, x0=x, settings=settings)[0] for x in (X0, -X0))
        assert np.array_equal(one, two) == from_noise


# --- the loop around the solver ---


def test_rounds_go_on_from_the_result():
    grid = make_grid(20)
    both = drawn(grid, rounds=2)
    _, states = translate(method_of(), grid, both, rounds=2, keep=20)
    x = X0
    for r in (0, 1):
        own = noise.replay(both.start(r)[None], normal(5, 2, 20, *IMAGES)[r : r + 1])
        x = translate(method_of(), grid, own, x0=x)[0]
        np.testing.assert_allclose(states[r, -1], x, atol=1e-5)


def test_step_by_step_is_the_scan():
    """The parts of a round, called one after the other, make the states of the scan."""
    grid, settings = make_grid(20, 6), ConfigDict()
    method = method_of((energies.content(2), 5.0))
    expected = translate(method, grid, keep=6)[1][0]
    levels = composition.make_levels(method, settings, grid, ANCESTRAL)
    parts = composition.make_round(
        X0, method, settings, {"score": some_eps}, noise=drawn(grid), solver=ANCESTRAL
    )
    rows = levels.rows()
    carry, own = parts.begin(X0, 0, rows)
    for k in range(6):
        row = jax.tree.map(lambda column, k=k: column[k], rows)
        carry = parts.step(carry, row, 0, own)
        np.testing.assert_allclose(parts.state(carry), expected[k], atol=1e-5)


def test_memory_does_not_grow_with_the_steps():
    method = method_of((energies.content(4), 1.0))

    def draw(*path):  # cheap to compile, and nothing that could be kept from before the run
        return jnp.cos(sum(path) + jnp.arange(2.0 * 32 * 32 * 3)).reshape(2, 32, 32, 3)

    def analyse(steps, keep):
        levels = composition.make_levels(method, None, make_grid(100, steps), ANCESTRAL)

        def run(x0, levels):
            return composition.translate(
                x0,
                method,
                None,
                {"score": some_eps},
                levels,
                noise=noise.Noise(draw, draw, draw),
                solver=ANCESTRAL,
                keep=keep,
            )

        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), levels)
        x0 = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        return jax.jit(run).lower(x0, shapes).compile().memory_analysis()

    few, many, kept = analyse(10, 0), analyse(100, 0), analyse(100, 100)
    state = 2 * 32 * 32 * 3 * 4
    assert abs(many.temp_size_in_bytes - few.temp_size_in_bytes) < 0.25 * state
    assert many.output_size_in_bytes == few.output_size_in_bytes
    assert kept.output_size_in_bytes >= many.output_size_in_bytes + 100 * state


# --- noise ---


def test_noise_belongs_to_the_image():
    @jax.jit
    def draw(seed, ids):
        own = noise.of_images(jax.random.key(seed), ids, IMAGES[1:])
        return own.start(1), own.step(1, 0, 5), own.reference(1, 0, 5)

    ids = np.array([11, 12, 2**32 - 1], np.uint32)
    both, turned, other_seed = draw(0, ids), draw(0, ids[::-1]), draw(1, ids)
    for k in range(3):
        np.testing.assert_array_equal(turned[k][::-1], both[k])
        np.testing.assert_array_equal(draw(0, ids[1:2])[k], both[k][1:2])
        assert np.abs(other_seed[k] - both[k]).min(axis=0).max() > 0.1


def test_noise_differs_by_round_level_and_use():
    own = noise.of_images(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32), (16, 16, 3))
    draws = [own.start(r) for r in (0, 1)]
    draws += [f(r, 0, i) for f in (own.step, own.reference) for r in (0, 1) for i in (5, 6)]
    flat = np.stack(draws).reshape(30, -1)  # also of the three images
    correlation = np.corrcoef(flat) - np.eye(30)
    assert np.abs(correlation).max() < 0.2  # 5 sigma of 768 values is 0.18
    assert flat.std() == pytest.approx(1, abs=0.02)
    # The position in the run is not part of it: runs with fewer steps share their noise.
    np.testing.assert_array_equal(own.step(0, 0, 5), own.step(0, 3, 5))


def test_energies_refer_to_the_source_perturbed_with_the_round_s_noise():
    """At the first level the state is the reference, so a distance has no gradient there."""
    grid = make_grid(50, 5)
    seen = []

    def energy(y, x_t, i):
        jax.debug.callback(lambda *values: seen.append(values), y, x_t)
        return jnp.sum((y - x_t) ** 2, axis=(1, 2, 3))

    translate(method_of((energy, 1.0)), grid)
    jax.effects_barrier()
    y, x_t = (np.asarray(a) for a in seen[0])
    e, alpha_bar = normal(4, 1, *IMAGES)[0], SCHEDULE.alpha_bar[49]
    np.testing.assert_allclose(x_t, schedules.perturb(X0, e, alpha_bar), atol=1e-6)
    np.testing.assert_allclose(y, x_t, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "nce"])
def test_with_clean_the_state_is_compared_with_the_source_itself(similarity):
    grid, method = make_grid(40), methods.METHODS["contrastive_sde"]

    def encoder(x, i, space):
        return jnp.concatenate([x, jnp.sin(2 * x) + 0.01 * i], axis=-1)

    def unit_patches(x, i):
        return energies.unit(encoder(x, i, "embedding")).reshape(len(x), -1, 6)

    def energy(y, x_t, i):
        a, b = unit_patches(y, i), unit_patches(X0, 0)
        if similarity == "cosine":
            return -jnp.mean(jnp.sum(a * b, axis=-1), axis=-1)
        return jnp.mean(energies.patch_nce(a, b, 0.1), axis=-1)

    c = base().contrastive_sde
    c.update(weight=30.0, content_weight=0.0, factor=2, similarity=similarity, clean=True)
    c.temperature = 0.1
    networks = {"score": some_eps, "encoder": encoder}
    levels = composition.make_levels(method, c, grid, ANCESTRAL)
    found = composition.translate(
        X0, method, c, networks, levels, noise=drawn(grid), solver=ANCESTRAL
    )[0]
    expected = translate(method_of((energy, 30.0)), grid)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected - translate(method_of((energy, 0.0)), grid)[0]).max() > 1e-3
