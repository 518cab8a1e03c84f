"""The 256² configs are the published networks, and their guided step is the published one."""

import json
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde.config import command_line
from cdsde.diffusion import energies, levels, methods, solvers
from cdsde.diffusion.methods import composition
from cdsde.networks import build
from cdsde.runtime import mesh
from cdsde.scaling import programs
from cdsde.weights import exchange
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
CONFIGS = Path(__file__).parents[2] / "configs"
FULL = json.loads((GOLDEN / "full_size.json").read_text())
RECIPE = json.loads((GOLDEN / "recipe.json").read_text())["full"]


def load(task):
    return command_line.load(str(CONFIGS / f"{task}.py"))


@pytest.mark.parametrize(
    ("task", "published", "stage", "entry"),
    [
        ("cat2dog", "cat2dog", "score", "adm_unet"),
        ("wild2dog", "cat2dog", "score", "adm_unet"),
        ("cat2dog", "cat2dog", "classifier", "dse"),
        ("male2female", "male2female", "score", "ddpm_unet"),
        ("male2female", "cat2dog", "classifier", "dse"),
    ],
)
def test_config_builds_the_published_tree(task, published, stage, entry):
    config = load(task)
    shapes = jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))
    found = helpers.published_shapes(shapes, exchange.kind_of(config, stage))
    keys = FULL[published][entry]["keys"]
    assert found == {k.removeprefix("module."): tuple(v) for k, v in keys.items()}


def noise(index, shape=(1, 3, 256, 256), seed=118):
    generator = np.random.Generator(np.random.PCG64(seed * 100000 + index))
    return np.moveaxis(generator.standard_normal(shape, dtype=np.float32), 1, -1)


def recipe_params(config, stage, seed):
    """Weights as recipe.json prescribes them, through the same door as --mode=import."""
    kind = exchange.kind_of(config, stage)
    shapes = jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))
    shapes = helpers.published_shapes(shapes, kind)
    state = {}
    for j, key in enumerate(sorted(shapes)):
        generator = np.random.Generator(np.random.PCG64(seed * 100000 + j))
        n = generator.standard_normal(shapes[key], dtype=np.float32)
        if n.ndim >= 2:
            state[key] = n / np.float32(np.sqrt(np.prod(n.shape[1:])))
        else:
            state[key] = np.float32(key.endswith(".weight")) + np.float32(0.1) * n
    return convert.from_state_dict(state, kind, **exchange._fields(config, stage))[1]


def error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.slow
def test_guided_step_of_cat2dog_at_full_size():
    config = load("cat2dog")
    config.method = "egsde"
    params = {
        "score": recipe_params(config, "score", RECIPE["adm"]["weights_seed"]),
        "classifier": recipe_params(config, "classifier", RECIPE["dse"]["weights_seed"]),
    }
    apply = {stage: build.MODELS[stage](config).apply for stage in params}
    y, x_t, z = noise(1), noise(2), noise(3)
    index = int(RECIPE["inputs"]["t"])
    grid = levels.make_grid(build.schedule_of(config), index + 1)
    solver = solvers.ancestral()
    run = composition.make_levels(methods.METHODS["egsde"], config.egsde, grid, solver)
    row = jax.tree.map(lambda column: jnp.asarray(column[0]), run.rows())
    _, level, coefficients, extra = row
    assert list(extra.weights) == [RECIPE["step"]["ls"], RECIPE["step"]["li"]]

    @jax.jit
    def step(params, y, x_t, z):
        i = jnp.float32(index)

        def classify(x, i, **kw):
            return apply["classifier"](params["classifier"], x, i, **kw)

        parts = methods.METHODS["egsde"].terms(config.egsde)
        terms = [term.energy({"classifier": classify}) for term in parts]
        total = energies.total(terms)
        # One backward pass a term, to compare each; the sampler takes one for their sum.
        separate = [jax.grad(lambda y, t=t: t(y, x_t, i).sum())(y) for t in terms]
        guidance = jax.grad(total)(y, [x_t, x_t], i, extra.weights)
        eps = apply["score"](params["score"], y, i)
        return solver.step(y, eps, guidance, level, coefficients, z, ())[0], eps, separate

    with jax.default_matmul_precision("float32"):
        sample, eps, (domain, content) = step(params, y, x_t, z)

    with np.load(GOLDEN / "full_step.npz") as arrays:
        golden = {k: np.moveaxis(v, 1, -1) if v.ndim == 4 else v for k, v in arrays.items()}
    part = np.s_[:, 3::8, 5::8]
    assert error(eps[part], golden["full_adm_model_output"][..., :3]) < 3e-5
    assert error(domain[part], golden["full_adm_grad_dse"]) < 5e-5
    assert error(content[part], golden["full_adm_grad_die"]) < 5e-5
    assert error(sample[part], golden["full_adm_sample"]) < 5e-6


@pytest.mark.slow
def test_guided_step_of_an_edit_with_stable_diffusion_fits():
    config = load("edit_cat2dog")
    assert config.data.image_size == 512
    config.edit.steps = 1
    program = programs.edit_steps(config, mesh.make_mesh(jax.devices()[:1]), 1)
    unet = program.arguments[0]
    assert build.count_parameters(unet) == 859_520_964
    memory = program.lower().compile().memory_analysis()
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 16 * 2**30
