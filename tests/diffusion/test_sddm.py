"""SDDM against its published code (tests/golden/methods)."""

import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vector_helpers as vectors
from diffusion.recording_helpers import (
    EXACT,
    Recording,
    assert_pictures_are_read_as_published,
    respaced_grid,
)
from vector_helpers import FOLDER, METHODS, arrays_of

from cdsde import config
from cdsde.diffusion import block_moments, least_norm, methods, noise, solvers
from cdsde.diffusion.levels import make_grid
from cdsde.diffusion.methods import composition
from cdsde.weights.torch import convert

SETTINGS, SEEDS = vectors.SETTINGS["sddm"], vectors.SETTINGS["seeds"]
METHOD = methods.METHODS["sddm"]
SOLVER = solvers.ancestral("learned")
pytestmark = pytest.mark.usefixtures("exact_products")


def assert_near(actual, expected, name):
    """Relative to the largest value; for an array of zeros absolute."""
    vectors.assert_near(actual, expected, name, largest=vectors.FLOORS[name]["max_abs"] or 1.0)


# --- the parts ---


def test_the_constants_are_the_published_ones():
    own = METHOD.settings["weight"].default, METHOD.sampling(config.base())["clip"]
    own += (least_norm.STEPS, least_norm.STOP, block_moments.EPS)
    names = "energy_factor", "clip_denoised"
    names += ("frank_wolfe_iterations", "frank_wolfe_stop", "moment_eps")
    assert own == tuple(SETTINGS[name] for name in names)


@pytest.mark.parametrize("file", ["sddm_parts", "sddm_steps", "sddm_runs"])
def test_pictures_are_read_as_published(file):
    assert_pictures_are_read_as_published(file)


def test_the_tables_of_the_respaced_schedule():
    arrays, grid = arrays_of("sddm_parts"), respaced_grid(SETTINGS["parts"]["respacing"])
    np.testing.assert_array_equal(grid.index[::-1], arrays["timestep_map"])
    c = SOLVER.coefficients(grid)

    def moved(y, guidance):
        return SOLVER.step(y, 0.0, guidance, grid, c, 0.0, ())[0]

    tables = {
        "alphas_cumprod": grid.alpha_bar,
        "weight_energy": -moved(0.0, 1.0),
        "sqrt_recip_alphas": moved(1.0, 0.0),
        "posterior_mean_coef1": c.of_clean,
        "posterior_mean_coef2": c.of_state,
    }
    for name, own in tables.items():
        assert_near(own[::-1], arrays[name], f"sddm_parts/{name}")
    name = "posterior_log_variance_clipped"  # the last step, whose entry is a stand-in, draws none
    assert c.std[-1] == 0
    assert_near(2 * np.log(c.std[-2::-1]), arrays[name][1:], f"sddm_parts/{name}")


@pytest.fixture(scope="module")
def vgg():
    apply, params = convert.load_torch(METHODS / "vgg_level1.safetensors", "vgg")
    return lambda x: apply(params, x)


def test_the_features(vgg):
    arrays = arrays_of("sddm_parts")
    h = vgg(jnp.asarray(arrays["x"]))
    whole = jnp.stack([h.mean(), h.std(ddof=1), h.max()])
    assert_near(h[..., :4], arrays["vgg_features_first4"], "sddm_parts/vgg_features_first4")
    name = "vgg_features_mean_std_max"
    assert_near(whole, arrays[name], f"sddm_parts/{name}")


def as_published(moment):
    """Moments `[B, A, 1, A, 1, C]` as `[B, C, A, A, 1, 1]`."""
    return jnp.transpose(moment, (0, 5, 1, 3, 2, 4))


@pytest.mark.parametrize("suffix", ["a0", pytest.param("a1", marks=pytest.mark.slow)])
def test_moments_projection_tangent_and_energy(vgg, suffix):
    arrays = arrays_of("sddm_parts")
    blocks = int(arrays["areas"][int(suffix[1])])
    levels = respaced_grid(SETTINGS["parts"]["respacing"]).alpha_bar[::-1][arrays["t"]]
    energy = block_moments.energy(vgg, blocks)

    @jax.jit
    def parts(ref, x, delta, cotangent):
        source = block_moments.moments(ref, blocks)
        adain, pull = jax.vjp(lambda x: block_moments.project(x, source), x)
        at = [block_moments.at_level(source, alpha_bar) for alpha_bar in levels]
        return {
            "ref_mean": as_published(source.mean),
            "ref_std": as_published(source.std),
            "level_mean": jnp.stack([as_published(moments.mean) for moments in at]),
            "level_std": jnp.stack([as_published(moments.std) for moments in at]),
            "projected": jnp.stack([block_moments.project(x, moments) for moments in at]),
            "tangent": jnp.stack([block_moments.tangent(delta, x, moments) for moments in at]),
            "adain": adain,
            "adain_vjp": pull(cotangent)[0],
            "energy": energy(x, ref, 0),
            "energy_gradient": jax.grad(lambda x: energy(x, ref, 0).sum())(x),
        }

    given = (arrays[name] for name in ("ref", "x", "delta", "adain_cotangent"))
    for name, value in parts(*given).items():
        assert_near(value, arrays[f"{name}_{suffix}"], f"sddm_parts/{name}_{suffix}")


def weights_and_steps(cut):
    """The weights of vectors `[B, ..., N, D]`, and the steps until the last image stops."""
    recording, real = Recording(), jax.lax.fori_loop

    def loop(first, count, step, state):
        step = recording.of("active", step, lambda _, n, state: state[1])
        return real(first, count, step, state)

    with mock.patch.object(jax.lax, "fori_loop", loop):
        a = jax.jit(lambda cut: least_norm.weights(cut))(cut)  # a new function is traced anew
    return a, sum(active.any() for active in recording.taken()["active"])


@functools.cache
def combinations():
    """`{name: vectors}`; the edge cases also one by one."""
    with np.load(METHODS / "sddm_combination.npz") as arrays:
        found = {k.removesuffix("_vectors"): v for k, v in arrays.items() if "_vectors" in k}
        count = sum(k.startswith("fw2_edge") and k.endswith("_weights") for k in arrays) - 1
    edges = {f"fw2_edge{k}": found["fw2_edge"][:, k : k + 1] for k in range(count)}
    assert count == found["fw2_edge"].shape[1]
    return found | edges


@pytest.mark.parametrize("name", combinations())
def test_the_shortest_combination(name):
    """The published code stops with the batch: here with the last of its images, the same."""
    v = combinations()[name]
    with np.load(METHODS / "sddm_combination.npz") as arrays:
        a, steps = weights_and_steps(v.reshape(*v.shape[:-2], -1))
        assert_near(a, arrays[f"{name}_weights"], f"sddm_combination/{name}_weights")
        combined = jnp.einsum("...n,...nhw->...hw", a, v)
        assert_near(combined, arrays[f"{name}_result"], f"sddm_combination/{name}_result")
        assert steps == arrays[f"{name}_iterations"]


def test_the_combination_of_an_image_does_not_depend_on_its_batch():
    vectors = np.random.default_rng(0).standard_normal((3, 4, 8, 8, 3), dtype=np.float32)
    shortest = jax.jit(least_norm.shortest, static_argnums=1)
    whole, alone = shortest(vectors, 2), shortest(vectors[:, 1:2], 2)
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-6)


# --- steps and runs ---


def published_heads(name):
    """What shapes do not tell of EGSDE's network."""
    settings = json.loads((FOLDER / "egsde" / "config.json").read_text())
    return settings[name]["num_head_channels"]


@pytest.fixture(scope="module")
def networks(vgg):
    folder = FOLDER / "egsde"
    fields = {
        "adm": {"num_head_channels": published_heads("adm_unet")},
        "ddpm": {"image_size": SETTINGS["run_ddpm"]["image"]},
    }
    unet, params = convert.load_torch(folder / "adm_unet.safetensors", "adm", **fields["adm"])
    small, small_params = convert.load_torch(
        folder / "ddpm_unet.safetensors", "ddpm", **fields["ddpm"]
    )
    dse, dse_params = convert.load_torch(
        folder / "dse.safetensors", "adm_encoder", num_head_channels=published_heads("dse")
    )

    def learned(x, i):
        out = unet(params, x, i)
        return out[..., :3], out[..., 3:]

    common = {"classifier": lambda x, i, **kwargs: dse(dse_params, x, i, **kwargs), "vgg": vgg}
    return {
        "adm": {"score": learned, **common},
        "ddpm": {"score": lambda x, i: small(small_params, x, i)[..., :3], **common},
    }


class Run:
    """A respaced run with the published noise; positions count from the first step.

    `step` and `states` also return what the parts of the method gave and got on the way.
    """

    def __init__(self, networks, ref, given, seed, **changes):
        self.grid = respaced_grid(given["respacing"])
        settings = config.base().sddm
        settings.update(until=int(self.grid.index[::-1][given["range_t"]]), blocks=given["area"])
        settings.update(weight=float(SETTINGS["energy_factor"]), **changes)
        self.levels = composition.make_levels(METHOD, settings, self.grid, SOLVER)
        draw = lambda i: vectors.draw(seed, i, ref.shape)  # noqa: E731
        self.noise = np.stack([draw(i) for i in reversed(range(len(self.grid.index)))])
        self._recording = Recording()
        watch = self._recording.of
        steering, projection = METHOD.steer(settings), METHOD.projection(settings)
        steering = steering._replace(
            mean=watch("steered", steering.mean, lambda *values: values[:4])
        )
        apply = watch("sample", projection.apply, lambda _, y, *rest: y)
        method = METHOD._replace(
            steer=lambda settings: steering,
            projection=lambda settings: projection._replace(apply=apply),
        )
        # With a state it is asked for the mean, without one for what the noise adds.
        added = lambda result, y, *rest: None if jnp.ndim(y) else result  # noqa: E731
        solver = SOLVER._replace(posterior=watch("added", SOLVER.posterior, added))
        score = watch(
            "eps", networks["score"], lambda out, *_: out[0] if isinstance(out, tuple) else out
        )
        self._parts = method, settings, networks | {"score": score}
        self._rest = {
            "noise": noise.replay(draw(99999)[None], self.noise[None]),
            "solver": solver,
            "clip": SETTINGS["clip_denoised"],
        }
        self.ref = jnp.asarray(ref)
        parts = composition.make_round(self.ref, *self._parts, **self._rest)
        drawn = composition.Drawn(jnp.zeros_like(self.ref), None)
        self._step = jax.jit(lambda y, row: parts.step((y, ()), row, 0, drawn)[0])

    def _recorded(self, function, *args):
        combine, weigh = least_norm.shortest, least_norm.weights
        of = self._recording.of
        with (
            mock.patch.object(least_norm, "shortest", of("combined", combine, lambda _, v, n: v)),
            mock.patch.object(least_norm, "weights", of("weights", weigh, lambda a, v: (a, v))),
        ):
            result = function(*args)
        return result, self._recording.taken()

    def step(self, y, i):
        """The step at the respaced index i, and what was recorded."""
        position = len(self.grid.index) - 1 - i
        row = jax.tree.map(lambda column: column[position], self.levels.rows())
        return self._recorded(self._step, jnp.asarray(y), row)

    def states(self):
        """The states after all steps, `[S, B, H, W, C]`, and what was recorded."""

        def go(x0, levels):
            return composition.translate(x0, *self._parts, levels, keep=10**6, **self._rest)

        (_, states), seen = self._recorded(jax.jit(go), self.ref, self.levels)
        return states[0], seen


def per_channel(a):
    """Weights `[B, A, A, C, N]` as `[B, C, A, A, N]`, without the A of whole images."""
    a = np.moveaxis(a, 3, 1)
    return a[:, :, 0, 0] if a.shape[2] == 1 else a


@pytest.mark.slow
def test_steps(networks):
    arrays, s = arrays_of("sddm_steps"), SETTINGS["step"]
    run = Run(networks["adm"], arrays["ref"], s, SEEDS["sddm_step"])
    np.testing.assert_array_equal(run.grid.index[::-1], arrays["timestep_map"])

    def check(value, name, k=...):
        assert_near(value, arrays[name][k], f"sddm_steps/{name}")

    for k, i in enumerate(arrays["levels"]):
        y, seen = run.step(arrays["x"][k], int(i))
        names = "eps", "added", "sample", "steered", "combined", "weights"
        (eps,), (added,), (sample,), (steered,), (combined,), (weighed,) = map(seen.get, names)
        check(eps, "eps", k)
        new_mean, _, mean, (gradient,) = steered
        check(mean, "mean", k)
        check(2 * np.log(added / run.noise[-1 - i]), "log_variance", k)
        check(gradient, "energy_gradient", k)
        check(combined[0], "tangent", k)
        check(combined[1], "guide", k)
        check(per_channel(weighed[0]), "weights", k)
        assert weights_and_steps(weighed[1])[1] == arrays["iterations"][k]
        check(new_mean, "new_mean", k)
        check(sample, "sample", k)
        check(y, "projected", k)
    for k, i in enumerate(arrays["unguided_levels"]):
        y, seen = run.step(arrays["unguided_x"][k], int(i))
        check(y, "unguided", k)
        assert not seen["steered"]
    y, seen = run.step(arrays["refine_x"], int(arrays["refine_level"]))
    check(np.stack([new_mean for new_mean, *_ in seen["steered"]]), "refine_means")
    assert len(seen["eps"]) == len(seen["steered"])
    check(y, "refine_projected")


@pytest.mark.slow
def test_a_step_whose_blocks_combine_by_themselves(networks):
    arrays, s = arrays_of("sddm_steps"), SETTINGS["step"]
    run = Run(networks["adm"], arrays["ref"], s, SEEDS["sddm_step"], detail=True)
    y, seen = run.step(arrays["x"][1], int(arrays["levels"][1]))
    ((a, _),) = seen["weights"]
    assert_near(per_channel(a), arrays["detail_weights"], "sddm_steps/detail_weights")
    assert_near(y, arrays["detail_projected"], "sddm_steps/detail_projected")


@pytest.mark.slow
def test_a_step_with_three_energies(networks):
    arrays, s = arrays_of("sddm_steps"), SETTINGS["step3"]
    three = {"energy": "all", "factor": s["down_N"]}
    run = Run(networks["adm"], arrays["three_ref"], s, SEEDS["sddm_step3"], **three)
    y, seen = run.step(arrays["three_x"], int(arrays["three_level"]))
    ((new_mean, _, _, gradients),), ((a, cut),) = seen["steered"], seen["weights"]
    found = {"gradients": np.stack(gradients), "weights": per_channel(a), "new_mean": new_mean}
    for name, value in (found | {"projected": y}).items():
        assert_near(value, arrays[f"three_{name}"], f"sddm_steps/three_{name}")
    assert weights_and_steps(cut)[1] == arrays["three_iterations"]


@pytest.mark.parametrize(
    "name", ["run", *(pytest.param(n, marks=pytest.mark.slow) for n in ("run_ddpm", "run3"))]
)
def test_runs(networks, name):
    arrays, s = arrays_of("sddm_runs"), SETTINGS[name]
    three = {"energy": "all", "factor": s["down_N"]} if "down_N" in s else {}
    net = networks["ddpm" if name == "run_ddpm" else "adm"]
    run = Run(net, arrays[f"{name}_ref"], s, SEEDS[f"sddm_{name}"], **three)
    np.testing.assert_array_equal(run.grid.index[::-1], arrays[f"{name}_timestep_map"])
    states, seen = run.states()
    kept = states[len(states) - 1 - arrays[f"{name}_steps"]]
    weights = np.stack([per_channel(a) for a, _ in seen["weights"]])
    for what, value in (("states", kept), ("weights", weights)):
        assert_near(value, arrays[f"{name}_{what}"], f"sddm_runs/{name}_{what}")


@pytest.mark.slow
def test_a_run_with_the_detail_step(networks):
    arrays = arrays_of("sddm_runs")
    args = arrays["run_ref"], SETTINGS["run"], SEEDS["sddm_run"]
    states, _ = Run(networks["adm"], *args, detail=True).states()
    assert_near(states[-1], arrays["run_detail_final"], "sddm_runs/run_detail_final")


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
