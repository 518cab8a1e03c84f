"""Steps and whole runs of the published PyTorch code (tests/golden/egsde), replayed.

The noise is drawn as the published runs drew theirs, so every state can be compared, not only
statistics. Tolerances are relative to the largest value of the array. Half of each is what the
rounding of other convolution code leaves (the code against itself: 2e-7 a step, 5e-6 after 500).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde import config
from cdsde.data import to_float, to_uint8
from cdsde.diffusion import energies, methods, noise, schedules, solvers
from cdsde.diffusion.levels import Grid, make_grid
from cdsde.diffusion.methods import composition
from cdsde.diffusion.methods.method import Method, Term
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
SCHEDULE = schedules.linear()
FACTOR = 8
ONE_STEP, TWENTY_STEPS, ALL_STEPS = 5e-6, 1e-5, 2e-5


pytestmark = pytest.mark.usefixtures("exact_products")


def golden(name):
    """The arrays of a file, images as NHWC (pictures, uint8, are so already)."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        floats = {k: v for k, v in arrays.items() if v.dtype == np.float32 and v.ndim >= 4}
        return {**arrays, **{k: np.moveaxis(v, -3, -1) for k, v in floats.items()}}


def error(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def load(name):
    """`(raw network, eps_fn, features)`: of the U-Net `name`, and of the domain classifier."""
    fields = {"adm": {"num_head_channels": 16}, "ddpm": {"image_size": 32}}[name]
    unet, params = convert.load_torch(GOLDEN / f"{name}_unet.safetensors", name, **fields)
    encoder, encoder_params = convert.load_torch(
        GOLDEN / "dse.safetensors", "adm_encoder", num_head_channels=16
    )

    def raw(x, i):
        return unet(params, x, i)

    def classify(x, i, **kwargs):
        return encoder(encoder_params, x, i, **kwargs)

    return raw, classify


def settings_of(name, **changes):
    """The package's own settings of a method; the reference networks are smaller."""
    settings = config.base()[name]
    if name != "sdedit":
        settings.factor = FACTOR
    settings.update(changes)
    return settings


# --- one guided step, taken apart ---

SIMILARITIES = [(s1, s2) for s1 in ("cosine", "neg_l2") for s2 in ("cosine", "neg_l2")]


@pytest.fixture(scope="module", params=["adm", pytest.param("ddpm", marks=pytest.mark.slow)])
def step(request):
    """The arrays of a step, and one compiled step for all choices of energies and variance.

    `run(k, t, s1, s2, ls, li, variance)` makes the step of image k at its index t[k] and returns
    `(model_output, mean without guidance, sample)`.
    """
    arrays = golden(f"step_{request.param}")
    raw, classify = load(request.param)
    terms = {}
    for s1, s2 in (("cosine", "neg_l2"), ("neg_l2", "cosine")):
        settings = settings_of("egsde", domain_similarity=s1, content_similarity=s2)
        domain, content = methods.METHODS["egsde"].terms(settings)
        terms["domain", s1] = domain.energy({"classifier": classify})
        terms["content", s2] = content.energy({})
    gradient = jax.grad(energies.total(list(terms.values())))

    @jax.jit
    def one(y, x_t, z, rows):
        def go(**functions):
            step = solvers.make_step(
                solvers.ancestral(), eps_fn=lambda y, i: raw(y, i)[..., :3], **functions
            )
            return solvers.reverse(step, (y, ()), rows)[0]

        def guidance(y, i, at, weights):
            return gradient(y, [x_t] * len(terms), i, weights)

        mean = go(noise_fn=lambda position, i: jnp.zeros_like(z))
        sample = go(noise_fn=lambda position, i: z, guidance_fn=guidance)
        return raw(y, rows[1].index[0].astype(jnp.float32)), mean, sample

    def run(k, t, s1, s2, ls, li, variance):
        position = 999 - int(t[k])
        grid = Grid(*(a[position : position + 1] for a in make_grid(SCHEDULE, 1000)))
        assert grid.index[0] == t[k]
        chosen = {("domain", s1): ls, ("content", s2): li}
        weights = np.array([chosen.get(key, 0.0) for key in terms], np.float32)
        y, x_t, z = (arrays[name][k : k + 1] for name in ("y", "xt", "noise"))
        coefficients = solvers.ancestral(variance).coefficients(grid)
        return one(y, x_t, z, solvers.rows(grid, coefficients, weights[None]))

    return arrays, run


def all_images(step, s1, s2, variance, suffix=""):
    arrays, run = step
    t = arrays[f"t{suffix}"]
    weights = [arrays[f"{name}_{s1}_{s2}"] for name in ("ls", "li")]
    parts = [run(k, t, s1, s2, *weights, variance) for k in range(len(t))]
    return [jnp.concatenate(p) for p in zip(*parts, strict=True)]


@pytest.mark.parametrize("variance", ["fixedsmall", "fixedlarge"])
@pytest.mark.parametrize(("s1", "s2"), SIMILARITIES)
def test_step(step, s1, s2, variance):
    sample = all_images(step, s1, s2, variance)[2]
    assert error(sample, step[0][f"sample_{s1}_{s2}_{variance}"]) < ONE_STEP


@pytest.mark.parametrize("suffix", ["_lowt", "_hight"])
def test_step_at_the_ends_of_the_schedule(step, suffix):
    sample = all_images(step, "cosine", "neg_l2", "fixedsmall", suffix)[2]
    assert error(sample, step[0][f"sample_cosine_neg_l2_fixedsmall{suffix}"]) < ONE_STEP


def test_step_without_guidance(step):
    model_output, mean, _ = all_images(step, "cosine", "cosine", "fixedsmall")
    assert error(model_output, step[0]["model_output"]) < 3e-5
    assert error(mean, step[0]["mean_score"]) < ONE_STEP


# --- whole runs ---


def draw(seed, index, batch):
    generator = np.random.Generator(np.random.PCG64(seed * 100000 + index))
    return np.moveaxis(generator.standard_normal((batch, 3, 32, 32), dtype=np.float32), 1, -1)


def noise_of_run(arrays, grid, batch=1, rounds=1):
    """`(start, step, reference)` of `noise.replay`, as the published runs drew them."""
    seed, level = int(arrays["noise_seed"]), [int(i) for i in grid.index]
    start = [draw(seed, 99999 - p, batch) for p in range(rounds)]
    steps = [[draw(seed, 1000 * p + i, batch) for i in level] for p in range(rounds)]
    reference = [[draw(seed, 50000 + i, batch) for i in level]] * rounds
    return np.array(start), np.array(steps), np.array(reference)


def compile_run(network, method, rounds=1, **changes):
    """`(run, levels)`: one compiled `run(x0, levels, noises) -> (result, states)`, all states, and
    `levels(grid, variance="fixedsmall")` for it."""
    raw, classify = load(network)
    settings, composed = settings_of(method, **changes), methods.METHODS[method]
    networks = {"score": lambda y, i: raw(y, i)[..., :3], "classifier": classify}

    @jax.jit
    def run(x0, levels, noises):
        return composition.translate(
            x0,
            composed,
            settings,
            networks,
            levels,
            noise=noise.replay(*noises),
            solver=solvers.ancestral(),
            rounds=rounds,
            keep=len(levels.grid.index),
        )

    def levels(grid, variance="fixedsmall"):
        return composition.make_levels(composed, settings, grid, solvers.ancestral(variance))

    return run, levels


def check_states(states, arrays, run, tolerance):
    """`states` `[S, B, H, W, C]` of one round against every saved state of the run."""
    steps, expected = arrays[f"{run}_steps"], arrays[f"{run}_states"]
    assert len(steps) == len(expected) >= 2
    for i, state in zip(steps, expected, strict=True):
        found = states[len(states) - 1 - i]
        assert error(found, state) < tolerance, f"{run} after index {i}"


def check_picture(result, expected, floor):
    """The written bytes; only values within the run's floor of the next level may fall over."""
    picture = to_uint8(result)
    level = np.clip((np.asarray(result) + 1) / 2, 0, 1) * 255 + 0.5
    undecided = np.abs(level - np.round(level)) < 127.5 * floor
    assert undecided.mean() < 0.05
    np.testing.assert_array_equal(picture[~undecided], expected[~undecided])
    assert np.abs(picture.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_source_is_read_as_published(name):
    arrays = golden(f"trajectory_{name}")
    np.testing.assert_allclose(to_float(arrays["source_uint8"]), arrays["x0"], atol=1.2e-7)


@pytest.mark.parametrize("name", ["adm", "ddpm"])
def test_start_and_references(name):
    """The states that the loop starts from and that the energies compare with."""
    arrays = golden(f"trajectory_{name}")
    grid = make_grid(SCHEDULE, 500)
    start, steps, _ = noise_of_run(arrays, grid)
    # An energy <y, x_t> has the gradient x_t; the steps return what they are given.
    term = Term(lambda networks: lambda y, x_t, i: jnp.sum(y * x_t, axis=(1, 2, 3)), 1.0)
    method = Method("test", "Test", {}, terms=lambda settings: (term,))
    seen = {}
    for what, step in (
        ("start", lambda y, eps, guidance, at, c, z, memory: (y, memory)),
        ("references", lambda y, eps, guidance, at, c, z, memory: (guidance, memory)),
    ):
        solver = solvers.Solver(1, step, lambda grid: (), lambda grid: ())
        _, states = composition.translate(
            arrays["x0"][:1],
            method,
            None,
            {"score": lambda y, i: y},
            composition.make_levels(method, None, grid, solver),
            noise=noise.replay(start, steps),
            solver=solver,
            keep=500,
        )
        seen[what] = states[0]
    init = arrays["egsde500_init"]
    assert error(seen["start"][0], init) < 1e-6
    assert error(seen["references"][0], init) < 1e-6  # at the first index x_t is y
    assert error(seen["references"][499 - 250], arrays["egsde500_xt_at_250"]) < 1e-6


@pytest.mark.slow
def test_twenty_steps_adm():
    arrays = golden("trajectory_adm")
    grid = make_grid(SCHEDULE, 20)
    # The published weights are the package's defaults: 500 and 2.
    run, levels = compile_run("adm", "egsde")
    numbers, noises = levels(grid), noise_of_run(arrays, grid)
    result, states = run(arrays["x0"][:1], numbers, noises)
    check_states(states[0], arrays, "egsde20", TWENTY_STEPS)
    check_picture(result, arrays["egsde20_png"][0], 1e-5)
    assert error(noise_of_start(arrays, noises, 20), arrays["egsde20_init"]) < 1e-6
    # As the published code has it, SDEdit is EGSDE with both weights 0.
    unguided = numbers._replace(weights=0 * numbers.weights)
    _, states = run(arrays["x0"][:1], unguided, noises)
    check_states(states[0], arrays, "sdedit20", TWENTY_STEPS)


def noise_of_start(arrays, noises, start, x=None):
    x = arrays["x0"][: noises[0].shape[1]] if x is None else x
    return schedules.perturb(x, noises[0][-1], SCHEDULE.alpha_bar[start - 1])


@pytest.mark.slow
def test_twenty_steps_ddpm():
    """A batch of two with the large variance, and two rounds; one program for both."""
    arrays = golden("trajectory_ddpm")
    run, levels = compile_run("ddpm", "egsde", rounds=2)

    grid = make_grid(SCHEDULE, 20)
    noises = noise_of_run(arrays, grid, batch=2, rounds=1)
    twice = [np.concatenate([a, a]) for a in noises]
    _, states = run(arrays["x0"], levels(grid, "fixedlarge"), twice)
    check_states(states[0], arrays, "egsde20", TWENTY_STEPS)
    check_picture(states[0, -1], arrays["egsde20_png"][0], 1e-5)
    assert error(noise_of_start(arrays, noises, 20), arrays["egsde20_init"]) < 1e-6

    # The published run has one image; here it stands twice in the batch.
    noises = [np.repeat(a, 2, axis=-4) for a in noise_of_run(arrays, grid, rounds=2)]
    first = np.repeat(arrays["x0"][:1], 2, axis=0)
    result, states = run(first, levels(grid), noises)
    np.testing.assert_array_equal(result, states[-1, -1])
    np.testing.assert_allclose(states[:, :, 0], states[:, :, 1], atol=1e-5)
    for p in (0, 1):
        check_states(states[p, :, :1], arrays, f"egsde20_repeat2_pass{p}", TWENTY_STEPS)
        check_picture(states[p, -1, :1], arrays["egsde20_repeat2_png"][p], 1e-5)
    # The second round starts from the first's result, not clamped.
    second = noise_of_start(arrays, noises, 20, states[0, -1])[:1]
    assert error(second, arrays["egsde20_repeat2_init"][1]) < TWENTY_STEPS


def run_500(network, method, run, **changes):
    """A complete run of 500 steps, every saved state compared; returns what it ended with."""
    arrays = golden(f"trajectory_{network}")
    grid = make_grid(SCHEDULE, 500)
    compiled, levels = compile_run(network, method, **changes)
    result, states = compiled(arrays["x0"][:1], levels(grid), noise_of_run(arrays, grid))
    check_states(states[0], arrays, run, ALL_STEPS)
    return arrays, result


@pytest.mark.slow
def test_500_steps_of_egsde():
    arrays, result = run_500("adm", "egsde", "egsde500")
    check_picture(result, arrays["egsde500_png"][0], 1e-4)


@pytest.mark.slow
def test_500_steps_of_egsde_with_ddpm():
    arrays, result = run_500("ddpm", "egsde", "egsde500")
    check_picture(result, arrays["egsde500_png"][0], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["adm", "ddpm"])
def test_500_steps_of_sdedit(network):
    run_500(network, "sdedit", "sdedit500")


@pytest.mark.parametrize(
    ("level", "run"),
    [
        ("previous", "ilvr500"),
        pytest.param("same", "ilvr500_same_level", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_500_steps_of_ilvr(level, run):
    run_500("adm", "ilvr", run, level=level, from_noise=False)
