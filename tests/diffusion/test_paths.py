"""The path adapter against the table of one noisy image on every path (tests/golden/pixel/path)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vector_helpers import FOLDER

from cdsde.diffusion import paths, schedules, solvers
from cdsde.diffusion.levels import Grid

TABLE = json.loads((FOLDER / "pixel" / "path" / "table.json").read_text())
X0, NOISE, OUTPUT = (np.array(TABLE[k]) for k in ("x0", "noise", "network_output"))
EXACT = 1e-11
LINEAR = {"kind": "levels", "schedule": "linear"}
B0, B1 = TABLE["sde_vp_beta_min_max"]
VP = {"kind": "vp", "beta_min": B0, "beta_max": B1, "scale": 999}
KINDS = {"edm_F": "F"}


def tables(alpha_bar, state="vp", output="eps", time=None, **more):
    path = paths.Path(state, output, time or {"kind": "sigma"}, **more)
    return paths.Tables(*(column[0] for column in paths.tables(path, np.array([alpha_bar]))))


def near(found, expected):
    expected = np.asarray(expected)
    assert np.abs(np.asarray(found) - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: f"{row['alpha_bar']:g}")
def test_states_times_and_outputs(row):
    alpha_bar, y = row["alpha_bar"], np.array(row["y"])
    for state, key in (("vp", "y"), ("ve", "x_ve"), ("flow", "x_flow")):
        near(tables(alpha_bar, state).k * y, row[key])
    sigma_data = TABLE["sigma_data"]
    near(tables(alpha_bar, "edm", sigma_data=sigma_data).k * y, row["edm"]["network_input"])
    times = [
        ({"kind": "sigma"}, row["sigma"]),
        ({"kind": "flow"}, row["t_flow"]),
        ({"kind": "minus_flow"}, 1 - row["t_flow"]),
        (VP, row["sde_vp_label"]),
        ({"kind": "log_sigma", "factor": 0.25}, row["edm"]["c_noise"]),
        ({"kind": "log_sigma", "unit": 2.0}, row["edm_ve"]["c_noise"]),
    ]
    for time, expected in times:
        near(tables(alpha_bar, time=time).time, expected)
    for kind, expected in row["output_read_as"].items():
        t = tables(alpha_bar, output=KINDS.get(kind, kind), sigma_data=sigma_data)
        near(t.p * y + t.q * OUTPUT, expected["eps"])


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: f"{row['alpha_bar']:g}")
def test_images_from_0_to_1(row):
    """The same image and noise in the other range give the same ε, from every output."""
    alpha_bar = row["alpha_bar"]
    y = np.array(row["y"])
    sigma = row["sigma"] / 2
    x0 = (X0 + 1) / 2
    a = 1 / np.sqrt(1 + sigma**2)
    s = sigma * a
    perfect = {"eps": NOISE, "x0": x0, "v": a * NOISE - s * x0, "score_ve": -NOISE / sigma}
    for output, m in perfect.items():
        t = tables(alpha_bar, "ve", output, data=(0, 1))
        near(t.k * y + t.d, x0 + sigma * NOISE)
        near(t.time, sigma)
        near(t.p * y + t.o + t.q * m, NOISE)


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: f"{row['alpha_bar']:g}")
def test_gradients_follow_the_chain_rule(row):
    """With respect to a network's own state; `make_step` takes them with respect to y."""
    g = np.array(TABLE["gradient_y"])
    for state, key in (("vp", "wrt_y"), ("ve", "wrt_x_ve"), ("flow", "wrt_x_flow")):
        near(g / tables(row["alpha_bar"], state).k, row["gradient"][key])
    with jax.enable_x64(True):
        x0, noise, alpha_bar = (jnp.asarray(a) for a in (X0, NOISE, row["alpha_bar"]))
        _, pull = jax.vjp(lambda x0: schedules.perturb(x0, noise, alpha_bar), x0)
        near(pull(jnp.asarray(g))[0], row["gradient"]["wrt_x0_at_fixed_noise"])


@pytest.mark.parametrize("step", TABLE["steps"], ids=lambda step: f"from {step['from_row']}")
def test_steps_are_those_of_every_path(step):
    now, following = (TABLE["rows"][step[key]] for key in ("from_row", "to_row"))
    a, p = now["alpha_bar"], following["alpha_bar"]
    column = lambda value: np.array([value], np.float64)  # noqa: E731
    grid = Grid(
        column(1), np.array([False]), column(a), column(p), column(1 - a / p),
        column((1 - a) / (1 - p)), column(np.sqrt(1 - a)),
    )  # fmt: skip
    with jax.enable_x64(True):
        level = jax.tree.map(lambda c: jnp.asarray(c)[0], grid)
        y, eps, none = jnp.asarray(now["y"]), jnp.asarray(OUTPUT), jnp.zeros(())
        found, _ = solvers.ddim().step(y, eps, none, level, 0.0, none, ())
        ancestral = solvers.ancestral()
        c = jax.tree.map(lambda column: jnp.asarray(column)[0], ancestral.coefficients(grid))
        mean, _ = ancestral.step(y, eps, none, level, c, none, ())
    for state, name in (("vp", "y"), ("ve", "x_ve"), ("flow", "x_flow")):
        k = tables(p, state).k
        near(k * np.asarray(found), step["ode"][name])
        near(k * np.asarray(mean), step["ancestral"][f"{name}_mean"])
        # The solvers keep deviations in float32.
        assert k * float(c.std) == pytest.approx(step["ancestral"][f"{name}_std"], rel=1e-6)


@pytest.mark.parametrize("row", TABLE["linear_table"], ids=lambda row: str(row["index"]))
def test_levels_of_the_linear_table(row):
    # `schedules.linear` is rounded as the published float32 table; these levels are not.
    alpha_bar = np.cumprod(1 - np.linspace(*TABLE["linear_betas_start_end_count"][:2], 1000))
    assert alpha_bar[row["index"]] == pytest.approx(row["alpha_bar"], rel=1e-11)
    assert schedules.linear().alpha_bar[row["index"]] == pytest.approx(row["alpha_bar"], rel=1e-5)
    t = row["alpha_bar"]
    assert schedules.log_snr(np.array(t)) == pytest.approx(row["log_snr"], rel=1e-11)
    for time, expected in (
        ({"kind": "sigma"}, row["sigma"]),
        ({"kind": "flow"}, row["t_flow"]),
        ({**VP, "scale": 1}, row["sde_vp_t"]),
    ):
        near(tables(t, time=time).time, expected)


def test_on_its_own_levels_a_network_is_told_whole_numbers():
    for name in ("linear", "cosine"):
        grid = schedules.SCHEDULES[name]().alpha_bar
        path = paths.Path("vp", "eps", {"kind": "levels", "schedule": name})
        near(paths.tables(path, grid).time, np.arange(1000))
    between = np.exp(np.log(grid[400:402]).mean())
    assert 400 < paths.tables(path, np.array([between])).time[0] < 401


def test_what_is_unknown():
    for path in (("vx", "eps", LINEAR), ("vp", "e", LINEAR), ("vp", "eps", {"kind": "x"})):
        with pytest.raises(ValueError, match="there are"):
            paths.tables(paths.Path(*path), np.array([0.5]))


def test_levels_beyond_those_of_its_training():
    grid = schedules.linear().alpha_bar
    assert paths.levels_known(paths.Path("vp", "eps", LINEAR), grid) == 1000
    edm = paths.Path("edm", "F", {"kind": "sigma"}, sigma_max=80.0)
    known = paths.levels_known(edm, grid)
    sigma = np.sqrt(1 / grid.astype(np.float64) - 1)
    assert sigma[known - 1] <= 80.8 < sigma[known] and known > 900
    halved = paths.levels_known(edm._replace(data=(0, 1)), grid)
    assert halved == (sigma / 2 <= 80.8).sum() > known
