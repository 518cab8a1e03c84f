"""State dicts of guided-diffusion: classes, learned variance and respaced levels are published."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers import one_sentence
from pixel_vectors import (
    PIXEL,
    at_times,
    check,
    compiled,
    keys_sha256,
    nhwc,
    read_json,
    recipe_noise,
    recipe_weights,
    save,
)

from cdsde.diffusion import levels, paths, schedules, solvers
from cdsde.diffusion.solvers import solver
from cdsde.networks import ADMUNet
from cdsde.weights.formats import beside, guided_diffusion
from cdsde.weights.torch import convert, kinds

FOLDER = PIXEL / "guided_diffusion"
(FILE,) = FOLDER.glob("*.pt")
RECIPE = read_json(FOLDER / "recipe.json")
FULL = read_json(FOLDER / "full_size.json")
RESPACING = read_json(FOLDER / "respacing.json")["respacing"]
LADDERS = ("full", "spaced10", "ddim25")

pytestmark = pytest.mark.usefixtures("exact_products")


@pytest.fixture(scope="module")
def opened():
    return guided_diffusion.read(FILE)


@pytest.fixture(scope="module")
def arrays():
    with np.load(FILE.with_suffix(".npz")) as found:
        return dict(found)


def module_of(opened):
    assert opened.arch == "adm"
    return ADMUNet(**beside.tupled(opened.fields))


def out(opened, x, t, y):
    module, y = module_of(opened), [None] * len(x) if y is None else y
    labels = [{} if label is None else {"y": jnp.array([label])} for label in y]
    one = [at_times(module, opened.params, image, [when], **label)
           for image, when, label in zip(x, t, labels, strict=True)]  # fmt: skip
    return np.concatenate(one)


def test_file(opened, arrays, compile_quickly):
    json.dumps((opened.fields, opened.path))
    x, y, t, mixed = (arrays[key] for key in ("x", "y", "t", "t_mixed"))
    file = FILE.with_suffix(".npz").name

    def near(name, *args):
        expected = arrays[name] if arrays[name].ndim == 4 else arrays[name][:, 0]
        check("guided_diffusion", file, name, out(opened, *args), expected)

    near("out", [x[0]] * len(t), t, [y[0]] * len(t))
    near("out_mixed", x, mixed, y)
    near("out_mixed_next_class", x, mixed, (y + 1) % opened.fields["num_classes"])


@pytest.mark.parametrize("tag", LADDERS)
def test_learned_variance_on_respaced_levels(tag, opened, arrays, compile_quickly):
    """The mean, variance and clean image of the published step, with our ancestral solver."""
    ladder = {k.removeprefix(f"{tag}_"): v for k, v in arrays.items() if k.startswith(tag)}
    kept = ladder["use_timesteps"]
    alpha_bar = np.array(opened.path["time"]["alpha_bar"])[kept]
    beta = 1 - alpha_bar / np.r_[1.0, alpha_bar[:-1]]
    np.testing.assert_allclose(alpha_bar, ladder["alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(beta, ladder["betas"], rtol=1e-9)
    spacing = {"full": str(len(kept)), "spaced10": str(len(kept)), "ddim25": f"ddim{len(kept)}"}
    total = len(opened.path["time"]["alpha_bar"])
    np.testing.assert_array_equal(levels.respaced(total, spacing[tag]), kept)

    schedule = schedules.Schedule(ladder["betas"], ladder["alphas_cumprod"])
    grid = levels.make_grid(schedule, len(kept))
    ancestral = solvers.make("ancestral", variance="learned")
    numbers = ancestral.coefficients(grid)
    index = ladder["index"]
    x = nhwc(arrays["x"])
    both = out(opened, arrays["x"], kept[index], arrays["y"])
    for n, i in enumerate(index):
        row = len(kept) - 1 - i
        level, c = (type(t)(*(column[row] for column in t)) for t in (grid, numbers))
        eps, factor = solver.split((both[n, ..., :3], both[n, ..., 3:]), level)
        a = ladder["alphas_cumprod"][i]
        clean = np.clip((x[n] - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1).astype("f4")
        mean = np.asarray(ancestral.posterior(x[n], clean, level, c, 0), "f4")
        expected = {k: nhwc(ladder[k][n]) for k in ("pred_xstart", "mean", "log_variance")}
        magnified = 1 + np.sqrt((1 - a) / a)  # what the last digits of ε become
        np.testing.assert_allclose(clean, expected["pred_xstart"], atol=1e-6 * magnified)
        np.testing.assert_allclose(mean, expected["mean"], atol=1e-5)
        if i > 0:  # the last step draws no noise
            log_variance = 2 * np.log(c.std * factor)
            np.testing.assert_allclose(log_variance, expected["log_variance"], atol=2e-5)


@pytest.mark.parametrize("asked", RESPACING)
def test_respaced_levels(asked):
    count, spacing = asked.split(" | ")
    found = levels.respaced(int(count), spacing)
    np.testing.assert_array_equal(found, RESPACING[asked])


@pytest.mark.parametrize("spacing", ["", "ddim", "ddim1001", "x", "0", "1001", "600,10", "ddim5,5"])
def test_spacings_that_cannot_be(spacing):
    with pytest.raises(ValueError, match=f"'{spacing}'"):
        levels.respaced(1000, spacing)


def test_cosine_noise_in_float64():
    beta = schedules.exact_beta("cosine", 4000)
    t = np.arange(4001) / 4000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    assert beta.dtype == np.float64
    np.testing.assert_array_equal(beta, np.minimum(1 - f[1:] / f[:-1], 0.999))
    np.testing.assert_allclose(schedules.exact_beta("linear", 4000)[[0, -1]], [2.5e-5, 5e-3])


def names_of(arguments):
    module = ADMUNet(**guided_diffusion.fields_of({**guided_diffusion.DEFAULTS, **arguments}))
    labels = {} if module.num_classes is None else {"y": jnp.zeros(1, int)}
    side = 2 ** (len(module.channel_mult) - 1)
    x = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, 0, **labels)
    leaves = traverse_util.flatten_dict(shapes["params"])
    adm = kinds.of_name("adm")
    return dict(convert._published(adm, path, leaf.shape) for path, leaf in leaves.items())


@pytest.mark.parametrize("name", RECIPE)
@pytest.mark.slow
def test_recipes(name, compile_quickly, tmp_path):
    entry = RECIPE[name]
    arguments = entry["arguments"]
    shapes = names_of(arguments)
    assert (len(shapes), keys_sha256(shapes)) == (entry["keys"], entry["keys_sha256"])
    save(tmp_path / "w.pt", recipe_weights(shapes, entry["weights_seed"]))
    opened = guided_diffusion.read(tmp_path / "w.pt", {"arguments": arguments})
    x, y = recipe_noise(entry["x"]), entry["y"]
    labels = {} if y is None else {"y": jnp.array(y)}
    t = jnp.array(entry["t"], jnp.float32)
    found = compiled(module_of(opened))(opened.params, nhwc(x), t, **labels)
    with np.load(FOLDER / "recipe.npz") as arrays:
        check("guided_diffusion", "recipe.npz", name, found, arrays[name])


@pytest.mark.parametrize("name", FULL)
def test_full_size_trees(name):
    shapes = names_of(FULL[name]["arguments"])
    assert (len(shapes), keys_sha256(shapes)) == (FULL[name]["keys"], FULL[name]["keys_sha256"])


# The flags of OpenAI's 128² network, which has 4 heads in place of heads of 64 channels.
CONDITIONAL = FULL["256x256 conditional (OpenAI's flags)"]["arguments"]
OF_128 = {**CONDITIONAL, "image_size": 128, "num_heads": 4, "num_head_channels": -1}


@pytest.mark.parametrize(
    "expected", [*(entry["arguments"] for entry in FULL.values()), OF_128], ids=[*FULL, "128x128"]
)
def test_what_published_files_do_not_say_is_known(expected):
    # From the names and shapes alone.
    shapes = names_of(expected)
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    inferred = convert.infer_architecture(state, "adm")
    told, arguments = guided_diffusion._published(inferred, state, FILE)
    assert told["new_attention_order"] == expected["use_new_attention_order"]
    assert told["num_head_channels"] == expected["num_head_channels"]
    if expected["resblock_updown"]:  # improved-diffusion published both noises
        assert arguments["noise_schedule"] == expected["noise_schedule"]


def test_configurations(tmp_path, caplog):
    arguments = read_json(FOLDER / FILE.with_suffix(".config.json").name)["arguments"]
    shutil.copy(FILE, path := tmp_path / "model000100.pt")

    def read(**changes):
        return guided_diffusion.read(path, {"arguments": {**arguments, **changes}})

    steps = {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
    found = read(**steps, predict_xstart=True).path
    assert "not averaged" in caplog.text
    assert (found["output"], found["time"]["scale"]) == ("x0", 0.25)
    alpha_bar = np.array(found["time"]["alpha_bar"])
    time = paths.tables(paths.Path(**found), alpha_bar[[8, 2000]]).time
    np.testing.assert_allclose(time, [2, 500])
    assert paths.levels_known(paths.Path(**found), alpha_bar[:4]) == 4
    for changes, message in (
        ({"num_channels": 64}, "channels=64 was passed where the file says 32"),
        ({"class_cond": False}, "num_classes=None was passed"),
        ({"noise_schedule": "sqrt"}, "'sqrt' is not known"),
        ({"squeeze": 1}, "sets squeeze to 1"),
        ({"num_heads": "4"}, "sets num_heads to 4; it must be like 4"),
        ({"image_size": 48, "channel_mult": ""}, "48 has no usual one"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read(**changes)
        assert "model000100" in str(error.value)
    assert guided_diffusion.read(path).side is None
    assert "4 heads in the old order and linear noise" in caplog.text
    assert read().side == arguments["image_size"]


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("told", [True, False])
def test_networks_of_other_images_are_refused(tmp_path, channels, told):
    """Super-resolution networks take the small image beside the noisy one; others grey ones."""
    weights = convert.read_state_dict(FILE, plain=True)
    stem = weights["input_blocks.0.0.weight"]
    weights["input_blocks.0.0.weight"] = np.repeat(stem[:, :1], channels, 1)
    save(tmp_path / "w.pt", weights)
    config = read_json(FILE.with_suffix(".config.json")) if told else None
    message = rf"w\.pt: its first convolution takes {channels} channels, and images here have 3;"
    with pytest.raises(ValueError, match=message) as error:
        guided_diffusion.read(tmp_path / "w.pt", config)
    assert one_sentence(str(error.value))
