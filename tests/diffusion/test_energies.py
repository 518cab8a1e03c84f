"""Low-pass and energies: the published numbers (tests/golden/egsde), and what they must satisfy."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde.diffusion import energies
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
FACTOR = 8


pytestmark = pytest.mark.usefixtures("exact_products")


def golden(name):
    """The arrays of a file, images as NHWC."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: np.moveaxis(v, -3, -1) if v.ndim >= 4 else v for k, v in arrays.items()}


def error(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


# --- the low-pass ---

SIZES = [(64, 4), (64, 8), (64, 32), (256, 32)]


@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_lowpass_parity(size, factor):
    arrays = golden("resizer")
    if size == 256:
        generator = np.random.Generator(np.random.PCG64(11 * 100000 + 912))
        x = generator.standard_normal((1, size, size, 1), dtype=np.float32)  # one channel
    else:
        x = arrays["x_64"]
    assert error(energies.lowpass(x, factor), arrays[f"up_{size}_N{factor}"]) < 1e-5


@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_lowpass_matrices_parity(size, factor):
    with np.load(GOLDEN / "resizer.npz") as arrays:
        down = arrays[f"down_matrix_{size}_N{factor}"]
        up = arrays[f"up_matrix_{size}_N{factor}"]
    small = size // factor
    assert error(energies._resize_matrix(size, small).astype(np.float32), down) < 1e-6
    assert error(energies._resize_matrix(small, size).astype(np.float32), up) < 1e-6
    assert error(energies.lowpass_matrix(size, factor), up @ down) < 1e-6


def test_lowpass_gradient_parity():
    arrays = golden("resizer")
    _, pullback = jax.vjp(lambda x: energies.lowpass(x, 8), arrays["x_64"])
    assert error(pullback(arrays["cotangent_64_N8"])[0], arrays["vjp_64_N8"]) < 1e-5


def test_lowpass_keeps_what_is_constant_and_loses_what_is_fine():
    flat = np.full((2, 32, 32, 3), 0.7, np.float32)
    np.testing.assert_allclose(energies.lowpass(flat, 8), flat, rtol=1e-6)
    checkerboard = np.float32(np.indices((32, 32)).sum(0) % 2 * 2 - 1)[None, :, :, None]
    assert np.abs(energies.lowpass(checkerboard, 8)).max() < 0.01
    np.testing.assert_allclose(energies.lowpass(checkerboard, 1), checkerboard, atol=1e-6)


def test_lowpass_treats_rows_and_columns_alike():
    x = np.random.default_rng(0).standard_normal((1, 16, 48, 2)).astype(np.float32)
    turned = energies.lowpass(x.swapaxes(1, 2), 4).swapaxes(1, 2)
    np.testing.assert_allclose(energies.lowpass(x, 4), turned, atol=1e-6)
    mirrored = energies.lowpass(x[:, ::-1, ::-1], 4)[:, ::-1, ::-1]
    np.testing.assert_allclose(energies.lowpass(x, 4), mirrored, atol=1e-6)


@pytest.mark.parametrize(("size", "factor"), [(30, 8), (8, 8), (8, 16), (64, 0), (64, -2)])
def test_lowpass_errors(size, factor):
    message = rf"low-pass of factor {factor} needs a side .* at least 2 left, not {size}$"
    with pytest.raises(ValueError, match=message):
        energies.lowpass_matrix(size, factor)
    with pytest.raises(ValueError, match=message):
        energies.lowpass(jnp.zeros((1, 64, size, 3)), factor)


# --- the published energies ---


@functools.partial(jax.jit, static_argnums=0)
def with_gradient(energy, y, x_t, i):
    """`(energies [B], gradient)`."""

    def total(y):
        values = energy(y, x_t, i)
        return jnp.sum(values), values

    gradient, values = jax.grad(total, has_aux=True)(y)
    return values, gradient


@functools.partial(jax.jit, static_argnums=0)
def values_of(energy, y, x_t, i):
    return energy(y, x_t, i)


def check_parity(name, rows, values, gradient, suffix=""):
    """The rows of a result against step_adm.npz or step_ddpm.npz; `rows` is `(file, slice)`."""
    for file, part in rows:
        arrays = golden(file)
        assert error(gradient[part], arrays[f"grad_{name}{suffix}"]) < 5e-5, file
        if not suffix:  # energies were stored for the first index only
            assert error(values[part], arrays[f"energy_{name}"]) < 5e-5, file
            assert error(jnp.sum(values[part]), arrays[f"energy_{name}_sum"]) < 5e-5, file


FIRST = [("step_adm", slice(0, 2)), ("step_ddpm", slice(2, 3))]
LOWEST = [("step_adm", slice(3, 5)), ("step_ddpm", slice(5, 6))]


def test_domain_energy_parity():
    apply, params = convert.load_torch(
        GOLDEN / "dse.safetensors", "adm_encoder", num_head_channels=16
    )

    @jax.jit
    def run(y, x_t, i):
        def features(x, i):
            return apply(params, x, i, head=False)[1]

        similarities = ("cosine", "neg_l2")
        return {s: with_gradient(energies.domain(features, s), y, x_t, i) for s in similarities}

    # One program for all: each image with its own index.
    arrays = [golden(file) for file, _ in FIRST]
    y, x_t = (np.concatenate([a[k] for a in arrays] * 2) for k in ("y", "xt"))
    i = np.concatenate([a[k] for k in ("t", "t_lowt") for a in arrays])
    results = run(y, x_t, i)
    for similarity, result in results.items():
        check_parity(f"dse_{similarity}", FIRST, *result)
    check_parity("dse_cosine", LOWEST, *results["cosine"], suffix="_lowt")


@pytest.mark.parametrize("similarity", ["cosine", "neg_l2"])
def test_content_energy_parity(similarity):
    arrays = [golden(file) for file, _ in FIRST]
    y, x_t = (np.concatenate([a[k] for a in arrays]) for k in ("y", "xt"))
    values, gradient = with_gradient(energies.content(FACTOR, similarity), y, x_t, 0.0)
    check_parity(f"die_{similarity}", FIRST, values, gradient)


# --- what every energy must satisfy ---

SHAPE = (3, 16, 16, 3)
GENERATOR = np.random.default_rng(1)
Y = GENERATOR.standard_normal(SHAPE, dtype=np.float32)
X_T = GENERATOR.standard_normal(SHAPE, dtype=np.float32)
MIX = GENERATOR.standard_normal((3, 6), dtype=np.float32)
POOL = GENERATOR.standard_normal((16 * 16 * 6, 10), dtype=np.float32) / 40


def feature_map(x, i):
    """A smooth map `[B, h, w, 6]` that depends on the level, as networks do."""
    return jnp.tanh(x @ MIX + i / 1000)


def feature_vector(x, i):
    return feature_map(x, i).reshape(x.shape[0], -1) @ POOL


ENERGIES = {
    "domain-cosine": energies.domain(feature_map),
    "domain-neg_l2": energies.domain(feature_map, "neg_l2"),
    "content-neg_l2": energies.content(4),
    "content-cosine": energies.content(4, "cosine"),
    "contrastive-vector": energies.contrastive(feature_vector),
    "contrastive-map": energies.contrastive(feature_map),
    "contrast-of-domains": energies.domain_contrast(
        feature_map,
        energies.DomainDirection(
            jnp.array([600.0, 300.0, 0.0]), GENERATOR.standard_normal((3, 6), dtype=np.float32)
        ),
    ),
}
each_energy = pytest.mark.parametrize("name", sorted(ENERGIES))


@each_energy
def test_gradient_is_the_finite_difference(name):
    energy = ENERGIES[name]
    values, gradient = with_gradient(energy, Y, X_T, 300.0)
    assert values.shape == (3,)
    # Along the gradient itself, where the change is largest against float32's rounding of E.
    norm = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3)))
    direction = gradient / norm[:, None, None, None]
    h = 0.02
    up, down = (values_of(energy, Y + s * h * direction, X_T, 300.0) for s in (1, -1))
    np.testing.assert_allclose((up - down) / (2 * h), norm, rtol=5e-3)


def test_contrast_of_domains_is_least_in_the_target_s_direction_at_its_own_level():
    target, source = jnp.eye(6)[:2], jnp.eye(6)[2:4]
    made = energies.DomainDirection(jnp.array([400.0, 100.0]), source - target)
    energy = energies.domain_contrast(lambda x, i: x, made)

    def at(direction, i):
        return float(
            energy(jnp.broadcast_to(3.0 * jnp.eye(6)[direction], (1, 4, 4, 6)), None, i)[0]
        )

    # Levels 300 and 120 are nearest to the first and second of them.
    assert [at(d, 300.0) for d in range(4)] == pytest.approx([-1, 0, 1, 0])
    assert [at(d, 120.0) for d in range(4)] == pytest.approx([0, -1, 0, 1])


@each_energy
def test_images_of_a_batch_do_not_influence_each_other(name):
    energy = ENERGIES[name]
    values, gradient = with_gradient(energy, Y, X_T, 300.0)
    changed_y, changed_x = Y.copy(), X_T.copy()
    changed_y[1], changed_x[1] = 3 * Y[0], -X_T[2]
    values_2, gradient_2 = with_gradient(energy, changed_y, changed_x, 300.0)
    for a, b in ((values, values_2), (gradient, gradient_2)):
        np.testing.assert_array_equal(a[::2], b[::2])
        assert np.abs(a[1] - b[1]).max() > 0
    alone, gradient_alone = with_gradient(energy, Y[:1], X_T[:1], 300.0)
    np.testing.assert_allclose(alone, values[:1], rtol=1e-5)
    np.testing.assert_allclose(gradient_alone, gradient[:1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(ENERGIES) - {"contrast-of-domains"}))
def test_extreme_at_the_reference(name):
    energy = ENERGIES[name]
    at_reference, gradient = with_gradient(energy, X_T, X_T, 300.0)
    expected = {"domain-cosine": 1, "content-cosine": -1, "contrastive-vector": -1}
    expected["contrastive-map"] = -1
    np.testing.assert_allclose(at_reference, expected.get(name, 0), atol=1e-5)
    _, elsewhere = with_gradient(energy, Y, X_T, 300.0)
    assert np.abs(gradient).max() < 1e-5 * np.abs(elsewhere).max()
    # The domain energies are likeness, greatest at the reference; the others distances.
    sign = -1 if name.startswith("domain") else 1
    assert np.all(sign * (values_of(energy, Y, X_T, 300.0) - at_reference) > 0)


@each_energy
def test_gradient_is_finite_where_there_is_no_direction(name):
    energy, zero = ENERGIES[name], np.zeros_like(Y)
    for y, x_t in ((zero, zero), (zero, X_T), (Y, zero)):
        values, gradient = with_gradient(energy, y, x_t, 0.0)  # tanh(0) = 0: no features
        assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradient))


def test_unit():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-12, 0.0], [1e-6, 0.0]], np.float32)
    expected = [[0.6, 0.8], [0, 0], [-1e-2, 0], [1, 0]]
    np.testing.assert_allclose(energies.unit(x), expected, rtol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.jacobian(energies.unit))(x)))


@pytest.mark.parametrize("name", [n for n in sorted(ENERGIES) if n[:7] != "content"])
def test_the_reference_is_a_constant(name):
    # Nothing is to be gained, and half the network's cost lost, from differentiating it.
    of_reference = jax.grad(lambda x_t: jnp.sum(ENERGIES[name](Y, x_t, 300.0)))
    gradient = jax.jit(of_reference)(X_T)
    assert not np.any(gradient)


@pytest.mark.parametrize("name", [n for n in sorted(ENERGIES) if n[:7] != "content"])
def test_the_level_reaches_the_network(name):
    energy = ENERGIES[name]
    assert np.abs(values_of(energy, Y, X_T, 0.0) - values_of(energy, Y, X_T, 999.0)).min() > 1e-3


def test_contrastive_cosine_of_simple_vectors():
    vectors = {1.0: (1, 0), 2.0: (0, 5), 3.0: (-2, 0), 4.0: (3, 3)}

    def encode(x, i):
        return jnp.stack([jnp.asarray(vectors[float(k)], jnp.float32) for k in x[:, 0, 0, 0]])

    y = np.full((4, 1, 1, 1), 1.0, np.float32)
    x_t = np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1)
    found = energies.contrastive(encode)(y, x_t, 0.0)
    np.testing.assert_allclose(found, [-1, 0, 1, -(0.5**0.5)], atol=1e-6)


def test_total_adds_over_the_batch_and_never_averages():
    used = [ENERGIES["domain-cosine"], ENERGIES["content-neg_l2"]]
    weights, references = np.array([500.0, 2.0], np.float32), [X_T, X_T[::-1]]
    of_total = jax.jit(jax.grad(energies.total(used)))
    gradient = of_total(Y, references, 300.0, weights)
    expected = sum(
        w * with_gradient(e, Y, x, 300.0)[1]
        for e, x, w in zip(used, references, weights, strict=True)
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    alone = of_total(Y[:1], [x[:1] for x in references], 300.0, weights)
    np.testing.assert_allclose(alone, gradient[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shorter"):
        energies.total(used)(Y, references, 300.0, weights[:1])
    assert energies.total([])(Y, [], 300.0, weights[:0]) == 0
