"""SDDM against its published code (tests/golden/methods)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vector_helpers as vectors
from vector_helpers import EXACT, FOLDER, METHODS, arrays_of, assert_near

from cdsde import config
from cdsde.diffusion import block_moments, least_norm, methods, noise, solvers
from cdsde.diffusion.levels import make_grid
from cdsde.diffusion.methods import composition
from cdsde.weights.torch import convert

SETTINGS, SEEDS = vectors.SETTINGS["sddm"], vectors.SETTINGS["seeds"]
METHOD = methods.METHODS["sddm"]
SOLVER = solvers.ancestral("learned")
pytestmark = pytest.mark.usefixtures("exact_products")


# --- the parts ---


@pytest.mark.parametrize("suffix", ["a0", pytest.param("a1", marks=pytest.mark.slow)])
def test_moments_projection_tangent_and_energy(suffix):
    arrays = arrays_of("sddm_parts")
    blocks = int(arrays["areas"][int(suffix[1])])
    ref, x, delta = (jnp.asarray(arrays[name]) for name in ("ref", "x", "delta"))
    source = block_moments.moments(ref, blocks)
    for k, t in enumerate(arrays["t"]):
        at = block_moments.at_level(source, arrays["alphas_cumprod"][t])
        for moment, name in ((at.mean, "level_mean"), (at.std, "level_std")):
            actual = jnp.transpose(moment[:, :, 0, :, 0], (0, 3, 1, 2))[..., None, None]
            assert_near(actual, arrays[f"{name}_{suffix}"][k], f"sddm_parts/{name}_{suffix}")
        for value, name in (
            (block_moments.project(x, at), "projected"),
            (block_moments.tangent(delta, x, at), "tangent"),
        ):
            assert_near(value, arrays[f"{name}_{suffix}"][k], f"sddm_parts/{name}_{suffix}")
    apply, params = convert.load_torch(METHODS / "vgg_level1.safetensors", "vgg")
    energy = block_moments.energy(lambda x: apply(params, x), blocks)
    assert_near(energy(x, ref, 0), arrays[f"energy_{suffix}"], f"sddm_parts/energy_{suffix}")
    gradient = jax.grad(lambda x: energy(x, ref, 0).sum())(x)
    name = f"energy_gradient_{suffix}"
    assert_near(gradient, arrays[name], f"sddm_parts/{name}")


def test_the_shortest_combination():
    with np.load(METHODS / "sddm_combination.npz") as arrays:
        names = [k.removesuffix("_vectors") for k in arrays if k.endswith("_vectors")]
        assert len(names) == 7
        for name in names:
            v = arrays[f"{name}_vectors"]
            a = least_norm.weights(jnp.asarray(v.reshape(*v.shape[:-2], -1)))
            assert_near(a, arrays[f"{name}_weights"], f"sddm_combination/{name}_weights")
            combined = jnp.einsum("...n,...nhw->...hw", a, v)
            assert_near(combined, arrays[f"{name}_result"], f"sddm_combination/{name}_result")


def test_the_combination_of_an_image_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(0), 3)
    vectors = [jax.random.normal(key, (4, 8, 8, 3)) for key in keys]
    whole = least_norm.shortest(vectors, 2)
    alone = least_norm.shortest([v[1:2] for v in vectors], 2)
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-6)


# --- steps and runs ---


def draw(seed, index, size):
    return vectors.draw(seed, index, (1, size, size, 3))


@pytest.fixture(scope="module")
def networks():
    unet, params = convert.load_torch(
        FOLDER / "egsde" / "adm_unet.safetensors", "adm", num_head_channels=16
    )
    small, small_params = convert.load_torch(
        FOLDER / "egsde" / "ddpm_unet.safetensors", "ddpm", image_size=16
    )
    dse, dse_params = convert.load_torch(
        FOLDER / "egsde" / "dse.safetensors", "adm_encoder", num_head_channels=16
    )
    vgg, vgg_params = convert.load_torch(METHODS / "vgg_level1.safetensors", "vgg")

    def learned(x, i):
        out = unet(params, x, i)
        return out[..., :3], out[..., 3:]

    common = {
        "classifier": lambda x, i, **kwargs: dse(dse_params, x, i, **kwargs),
        "vgg": lambda x: vgg(vgg_params, x),
    }
    return {
        "adm": {"score": learned, **common},
        "ddpm": {"score": lambda x, i: small(small_params, x, i)[..., :3], **common},
    }


class Run:
    """A respaced run with the published noise; positions count from the first step."""

    def __init__(self, networks, ref, steps, range_t, seed, **changes):
        self.grid = make_grid(EXACT, 1000, steps)
        settings = config.base().sddm
        settings.update(until=int(self.grid.index[::-1][range_t]), **changes)
        self.levels = composition.make_levels(METHOD, settings, self.grid, SOLVER)
        size = ref.shape[1]
        start = draw(seed, 99999, size)[None]
        each = np.stack([draw(seed, i, size) for i in reversed(range(steps))])[None]
        self._parts = (METHOD, settings, networks)
        self._rest = {"noise": noise.replay(start, each), "solver": SOLVER, "clip": True}
        self.ref = jnp.asarray(ref)
        parts = composition.make_round(self.ref, *self._parts, **self._rest)
        drawn = composition.Drawn(jnp.zeros_like(self.ref), None)
        self._step = jax.jit(lambda y, row: parts.step((y, ()), row, 0, drawn)[0])

    def step(self, y, i):
        """The step at the respaced index i."""
        position = len(self.grid.index) - 1 - i
        row = jax.tree.map(lambda column: column[position], self.levels.rows())
        return self._step(jnp.asarray(y), row)

    def states(self):
        """The states after all steps, `[S, B, H, W, C]`."""

        def go(x0, levels):
            return composition.translate(x0, *self._parts, levels, keep=10**6, **self._rest)

        return jax.jit(go)(self.ref, self.levels)[1][0]


@pytest.mark.slow
def test_steps(networks):
    arrays, s = arrays_of("sddm_steps"), SETTINGS["step"]
    adm = networks["adm"]
    run = Run(adm, arrays["ref"], 100, s["range_t"], SEEDS["sddm_step"], blocks=s["area"])
    np.testing.assert_array_equal(run.grid.index[::-1], arrays["timestep_map"])
    for k, i in enumerate(arrays["levels"]):
        y = run.step(arrays["x"][k], int(i))
        assert_near(y, arrays["projected"][k], "sddm_steps/projected")
    for k, i in enumerate(arrays["unguided_levels"]):
        y = run.step(arrays["unguided_x"][k], int(i))
        assert_near(y, arrays["unguided"][k], "sddm_steps/unguided")
    y = run.step(arrays["refine_x"], int(arrays["refine_level"]))
    assert_near(y, arrays["refine_projected"], "sddm_steps/refine_projected")
    detailed = Run(
        adm, arrays["ref"], 100, s["range_t"], SEEDS["sddm_step"], blocks=s["area"], detail=True
    )
    y = detailed.step(arrays["x"][1], int(arrays["levels"][1]))
    assert_near(y, arrays["detail_projected"], "sddm_steps/detail_projected")
    s = SETTINGS["step3"]
    three = dict(blocks=s["area"], energy="all", factor=s["down_N"])
    run = Run(adm, arrays["three_ref"], 100, s["range_t"], SEEDS["sddm_step3"], **three)
    y = run.step(arrays["three_x"], int(arrays["three_level"]))
    assert_near(y, arrays["three_projected"], "sddm_steps/three_projected")


@pytest.mark.parametrize(
    "name", ["run", *(pytest.param(n, marks=pytest.mark.slow) for n in ("run_ddpm", "run3"))]
)
def test_runs(networks, name):
    arrays, s = arrays_of("sddm_runs"), SETTINGS[name]
    steps, seed = int(s["respacing"]), SEEDS[f"sddm_{name}"]
    more = dict(energy="all", factor=s["down_N"]) if name == "run3" else {}
    net = networks["ddpm" if name == "run_ddpm" else "adm"]
    ref = arrays[f"{name}_ref"]
    states = Run(net, ref, steps, s["range_t"], seed, blocks=s["area"], **more).states()
    expected = arrays[f"{name}_states"]
    kept = (
        states
        if name != "run3"
        else states[np.array([steps - 1 - i for i in arrays["run3_steps"]])]
    )
    assert_near(kept, expected, f"sddm_runs/{name}_states")


@pytest.mark.slow
def test_a_run_with_the_detail_step(networks):
    arrays, s = arrays_of("sddm_runs"), SETTINGS["run"]
    args = arrays["run_ref"], int(s["respacing"]), s["range_t"], SEEDS["sddm_run"]
    last = Run(networks["adm"], *args, blocks=s["area"], detail=True).states()[-1]
    assert_near(last, arrays["run_detail_final"], "sddm_runs/run_detail_final")


def test_there_are_no_moves_where_nothing_steers():
    """They would take noise away without going to a lower level."""
    grid = make_grid(EXACT, 500, 5)
    c = config.base().sddm
    c.update(blocks=4, until=250)
    moves = composition.make_levels(METHOD, c, grid, SOLVER).moves
    assert moves.sum() == 4 and moves[grid.index <= 250].sum() == 0
    c.weight = 0.0
    assert composition.make_levels(METHOD, c, grid, SOLVER).moves.sum() == 0
    c.weight = 25.0
    rarely = composition.make_levels(METHOD, c, grid, SOLVER, every=5)
    assert rarely.weights[0].any()  # the first step alone: the last one above T0 has no moves
    assert rarely.moves.sum() == 0


# --- its parts in other methods ---


@pytest.mark.slow
def test_its_combination_and_its_projection_serve_other_methods():
    """EGSDE with the shortest combination of its two gradients, and SDEdit kept on the moments."""
    egsde, sdedit = methods.METHODS["egsde"], methods.METHODS["sdedit"]
    grid, solver = make_grid(EXACT, 500, 5), solvers.ancestral()
    x0 = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    found = {
        "score": lambda x, i: 0.1 * x,
        "classifier": lambda x, i, head=False: (None, jnp.tanh(x)),
    }
    c = config.base()
    c.egsde.update(factor=4, domain_weight=500.0)
    c.sddm.update(blocks=4, until=0)

    def go(method, settings):
        levels = composition.make_levels(method, settings, grid, solver)
        noises = noise.of_images(jax.random.key(1), jnp.zeros(1, jnp.uint32), x0.shape[1:])
        args = x0, method, settings, found, levels
        return composition.translate(*args, noise=noises, solver=solver)[0]

    plain = go(egsde, c.egsde)
    shortest = go(
        egsde._replace(combine=lambda gradients, y, i: least_norm.shortest(gradients)), c.egsde
    )
    assert np.isfinite(shortest).all() and np.abs(shortest - plain).max() > 1e-3
    held = sdedit._replace(projection=lambda settings: METHOD.projection(c.sddm))
    kept = block_moments.moments(go(held, c.sdedit), 4).mean
    wanted = block_moments.moments(x0, 4).mean
    free = block_moments.moments(go(sdedit, c.sdedit), 4).mean
    assert np.abs(kept - wanted).max() < 0.2 * np.abs(free - wanted).max()
