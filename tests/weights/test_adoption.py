"""Published score networks as a config's: named, imported, translated with, refused."""

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
from helpers import one_sentence, random_params
from pixel_vectors import save
from safetensors.numpy import load_file, save_file
from sampling_helpers import batch

from cdsde import load_config, load_sampler
from cdsde.data import to_float
from cdsde.networks import build, published
from cdsde.serve.live import Translator
from cdsde.translation import latents
from cdsde.translation.compiled import Sampler
from cdsde.weights import adoption, diffusers, exchange, exported, resolve
from cdsde.weights.formats import registry
from cdsde.weights.torch import convert

# File -> side of its images, class.
FILES = {
    "diffusers/a_ddpm_root": (16, None),
    "diffusers/a_ddpm_root_old": (16, None),
    "diffusers/c_ncsnpp": (16, None),
    "edm/ddpmpp_vp.pkl": (16, None),
    "edm/adm_edm_cond.pkl": (16, 2),
    "score_sde/ncsnpp_ve.pth": (16, None),
    "guided_diffusion/ema_0.9999_010000.pt": (16, 1),
    "dit/0050000.pt": (16, 3),
}
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def task_of(golden, tiny):
    """`task_of(name, **changes)`: a task whose score network is a file of the vectors."""

    def make(name, **changes):
        side, label = FILES[name]
        keys = {"method": "sdedit", "sample__start": 300, "data__image_size": side}
        keys |= {"weights__score": str(golden / "pixel" / name), "score__label": label}
        return tiny(**{**keys, **changes})

    return make


@pytest.mark.parametrize(
    "name",
    [
        "diffusers/a_ddpm_root",
        "edm/adm_edm_cond.pkl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in FILES
            if name not in ("diffusers/a_ddpm_root", "edm/adm_edm_cond.pkl")
        ),
    ],
)
def test_a_file_is_named_and_translates(task_of, tmp_path, name):
    config = task_of(name)
    sampler, origins = load_sampler(config, tmp_path)
    images, ids = batch(FILES[name][0])
    states = sampler.states(images, ids)[0]
    assert np.isfinite(states).all() and states.std() > 0.01
    assert str(config.weights.score) in origins["score"]
    assert config.score.arch == "adm"  # the given config stays as it is


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_gradients_with_respect_to_the_image_are_slopes(task_of, tmp_path, name):
    """For energies of the predicted image; some networks' layers have gradients by hand."""
    config = adoption.adopted(task_of(name), tmp_path)
    params, _ = resolve.load(config, tmp_path, "score")
    apply = build.score_model(config).apply
    r = np.random.default_rng(0)
    x, cotangent, along = r.standard_normal((3, 2, 16, 16, 3)).astype("f4")

    @jax.jit
    def value(x):
        return (apply(params, x, 200) * cotangent).sum()

    slope = float((jax.jit(jax.grad(value))(x) * along).sum())
    step = 1e-2
    ahead, behind = (np.float64(value(x + sign * step * along)) for sign in (1, -1))
    assert abs(slope) > 0.1
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-2)


def test_every_file_of_the_vectors_is_recognised(golden):
    formats = {name: registry.format_of(str(golden / "pixel" / name)) for name in FILES}
    assert all(kind == name.split("/")[0] for name, kind in formats.items())
    assert registry.format_of("shipped:fluent_score") is None
    assert registry.format_of(str(golden / "egsde" / "dse.safetensors")) is None
    # A network without classes is described by its file, or by the keys, where it is imported.
    plain = str(golden / "egsde" / "adm_unet.safetensors")
    assert registry.format_of(plain) == "guided_diffusion"
    assert registry.format_of(plain, importing=True) is None


@pytest.mark.slow
def test_imported_it_needs_no_file(task_of, tmp_path):
    name = "edm/ddpmpp_vp.pkl"
    config = adoption.adopted(task_of(name), tmp_path)
    exchange.import_weights(config, tmp_path)
    images, ids = batch()
    expected = load_sampler(task_of(name), "nowhere")[0](images, ids)
    alone = task_of(name, weights__score=None)
    np.testing.assert_array_equal(load_sampler(alone, tmp_path)[0](images, ids), expected)


def test_a_label_and_what_is_refused(task_of, tiny, tmp_path):
    conditional = "guided_diffusion/ema_0.9999_010000.pt"
    cases = [
        (dict(score__label=None), "needs one; choose the target's with --config.score.label"),
        (dict(score__label=6), "knows the classes 0 to 5"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            adoption.adopted(task_of(conditional, **changes), tmp_path)
    with pytest.raises(
        ValueError, match="guidance is 4.0, and the network of config.weights.score k"
    ):
        adoption.adopted(task_of(conditional, score__guidance=4.0), tmp_path)
    with pytest.raises(ValueError, match="there is no score network yet; name a file that knows"):
        adoption.adopted(tiny(score__label=1), tmp_path)
    with pytest.raises(ValueError, match="the score network takes no class; leave them out"):
        own = tiny(score__label=1, weights__score="shipped:score-fluent-64")
        adoption.adopted(own, tmp_path)
    with pytest.raises(ValueError, match="takes no class"):
        adoption.adopted(task_of("edm/ddpmpp_vp.pkl", score__label=1), tmp_path)
    with pytest.raises(ValueError, match="set it to 16"):
        adoption.adopted(task_of("edm/ddpmpp_vp.pkl", data__image_size=32), tmp_path)
    with pytest.raises(ValueError, match="was trained on noise up to level"):
        adoption.adopted(task_of("score_sde/ncsnpp_ve.pth", sample__start=1000), tmp_path)
    with pytest.raises(ValueError, match="names two|architectures or noise levels"):
        other = str(task_of("diffusers/c_ncsnpp").weights.score)
        adoption.adopted(task_of("edm/ddpmpp_vp.pkl", weights__source_score=other), tmp_path)


def test_one_network_of_classes_leads_from_class_to_class(task_of, tmp_path):
    """As in DDIB: up with the class of the source, down with the target's."""
    conditional = "guided_diffusion/ema_0.9999_010000.pt"
    both = {"weights__source_score": str(task_of(conditional).weights.score), "method": "ddib"}
    with pytest.raises(ValueError, match="choose the source's with --config.score.source_label=0"):
        adoption.adopted(task_of(conditional, **both), tmp_path)
    with pytest.raises(ValueError, match="config.score.source_label is 9, and .* classes 0 to 5"):
        adoption.adopted(task_of(conditional, **both, score__source_label=9), tmp_path)
    with pytest.raises(ValueError, match="sdedit runs no network of the source domain"):
        adoption.adopted(task_of(conditional, method="sdedit", score__source_label=1), tmp_path)
    labels = {"score__source_label": 2, "score__label": 1}
    config = adoption.adopted(task_of(conditional, **both, **labels), tmp_path)
    params = resolve.load(config, tmp_path, "source_score")[0]
    x = to_float(batch()[0])
    source, target = (
        build.MODELS[stage](config).apply(params, x, 300.0) for stage in ("source_score", "score")
    )
    config.score.label = 2
    np.testing.assert_array_equal(source, build.score_model(config).apply(params, x, 300.0))
    assert (source != target).any()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("classes", [True, False])
def test_a_network_of_guided_diffusion_is_opened_by_its_names(
    golden, task_of, tmp_path, caplog, suffix, classes
):
    """With or without classes, as PyTorch writes it or as safetensors."""
    source = golden / "egsde" / "adm_unet.safetensors"
    if classes:
        source = golden / "pixel" / "guided_diffusion" / "ema_0.9999_010000.pt"
    weights = convert.read_state_dict(source, plain=True)
    path = tmp_path / f"w{suffix}"
    save(path, weights) if suffix == ".pt" else save_file(weights, path)
    name = "guided_diffusion/ema_0.9999_010000.pt"
    task = task_of(name, weights__score=str(path), score__label=1 if classes else None)
    config = adoption.adopted(task, tmp_path)
    assert "w.config.json: taking" in caplog.text and "linear noise" in caplog.text
    params, _ = resolve.load(config, tmp_path, "score")
    back = convert.to_state_dict(params, "adm")
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[key], weights[key]) for key in weights)
    assert published.of_text(config.score.published).classes == (6 if classes else None)
    if not classes:  # training on goes by the keys
        assert adoption.adopted(task, tmp_path, importing=True).score.arch == "adm"
        with pytest.raises(ValueError, match="bring published weights in with --mode=import"):
            resolve.load(task, tmp_path, "score")


def test_a_learned_variance_is_that_of_the_file(task_of, tiny, tmp_path, golden):
    learned = {"sample__variance": "learned"}
    for key in (True, False):
        config = adoption.adopted(
            task_of("guided_diffusion/ema_0.9999_010000.pt", score__learn_sigma=key, **learned),
            tmp_path,
        )
        assert config.score.learn_sigma
        with pytest.raises(ValueError, match="network of config.weights.score learned none; set"):
            adoption.adopted(task_of("edm/ddpmpp_vp.pkl", score__learn_sigma=key, **learned), "x")
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)
    network = build.score_model(config)
    both = jax.eval_shape(
        functools.partial(network.apply, variance=True), resolve.shapes(config, "score"), x, 3
    )
    assert [part.shape for part in both] == [x.shape, x.shape]
    with pytest.raises(ValueError, match="config.score.learn_sigma is False; set it to fixedsmall"):
        adoption.adopted(tiny(method="sdedit", score__learn_sigma=False, **learned), tmp_path)
    with pytest.raises(ValueError, match="solver 'ddim', which has no such option"):
        tiny(method="sdedit", sample__solver="ddim", **learned)


@pytest.fixture
def folder_of(golden, tmp_path):
    """`folder_of(config, scheduler, change)`: a copy of a pixel folder with other fields, whose
    arrays `change` changes in place."""

    def make(config=(), scheduler=(), change=lambda weights: None):
        folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        shutil.copytree(golden / "pixel" / "diffusers" / "a_ddpm_root", folder)
        for file, fields in (("config.json", config), ("scheduler_config.json", scheduler)):
            told = json.loads((folder / file).read_text()) | dict(fields)
            gone = [name for name, value in dict(fields).items() if value is None]
            told = {name: value for name, value in told.items() if name not in gone}
            (folder / file).write_text(json.dumps(told))
        (path,) = folder.glob("*.safetensors")
        weights = load_file(path)
        change(weights)
        save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
        return str(folder)

    return make


def as_often(times, *names):
    """A change that repeats an array along its first axis, or takes its first channel."""

    def change(weights):
        for name in names:
            value = weights[name]
            weights[name] = np.concatenate([value] * times) if times > 1 else value[:1]

    return change


HEAD = ("conv_out.weight", "conv_out.bias")


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_folder_learned_a_share_of_the_variance_or_is_refused(folder_of, task_of, tmp_path, kind):
    folder = folder_of({"out_channels": 6}, {"variance_type": kind}, as_often(2, *HEAD))
    config = task_of("diffusers/a_ddpm_root", weights__score=folder, sample__variance="learned")
    if kind == "learned_range":
        assert adoption.adopted(config, tmp_path).score.learn_sigma
        return
    with pytest.raises(ValueError, match="variance_type to 'learned', .* only 'learned_range'"):
        adoption.adopted(config, tmp_path)


def gray(weights):
    as_often(1, *HEAD)(weights)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :1]


def timed(weights):
    for name in [n for n in weights if n.startswith("time_embedding.")]:
        weights[name.replace("time", "class")] = weights[name]


UNUSABLE = [
    ({"in_channels": 1, "out_channels": 1}, gray, "sees images of 1 channels, and images here"),
    ({"class_embed_type": "identity"}, lambda w: None, "takes a vector with each image"),
    ({"class_embed_type": "timestep"}, timed, "takes a number with each image"),
]


@pytest.mark.parametrize(("fields", "change", "told"), UNUSABLE, ids=[t for *_, t in UNUSABLE])
def test_what_no_key_can_serve_is_told(folder_of, task_of, tmp_path, fields, change, told):
    config = task_of("diffusers/a_ddpm_root", weights__score=folder_of(fields, (), change))
    with pytest.raises(ValueError, match=told) as error:
        adoption.adopted(config, tmp_path)
    assert one_sentence(str(error.value))


def test_a_missing_file_of_the_source_is_told(task_of, tmp_path):
    missing = "/nowhere/x.pt"
    config = task_of(
        "diffusers/a_ddpm_root", method="cyclediffusion", weights__source_score=missing
    )
    with pytest.raises(ValueError, match=f"config.weights.source_score={missing} does not exist"):
        adoption.adopted(config, tmp_path)


CYCLE = {"method": "cyclediffusion", "sample.solver": "ancestral"}
# Fields of a file's sampler, keys of the config -> what becomes of `sample`, or what is said.
SAMPLERS = [
    ({}, {}, {"clip": True, "variance": "fixedsmall", "spacing": "leading"}),
    ({}, {"sample.clip": False}, {"clip": False}),
    ({}, {"sample.spacing": "log_snr"}, {"spacing": "log_snr"}),
    ({"clip_sample": False}, {}, {"clip": False}),
    ({"clip_sample": False}, {"sample.clip": True}, {"clip": True}),
    ({"clip_sample_range": 2}, {}, "clip_sample_range to 2.0"),
    ({"clip_sample_range": 2}, {"sample.clip": True}, {"clip": True}),
    ({"thresholding": True}, {}, "thresholding to true"),
    ({"thresholding": True}, {"sample.clip": False}, {"clip": False}),
    ({"variance_type": "fixed_large"}, {}, {"variance": "fixedlarge"}),
    ({"variance_type": "fixed_large"}, {"sample.variance": "learned"}, "learned none"),
    ({"variance_type": "fixed_large"}, {"sample.solver": "ddim"}, {"variance": "fixedsmall"}),
    ({"timestep_spacing": "trailing"}, {}, {"spacing": "trailing"}),
    ({"timestep_spacing": "trailing"}, {"sample.steps": None}, {"spacing": "index"}),
    ({"timestep_spacing": "linspace"}, {}, {"spacing": "index"}),
    ({"steps_offset": 5}, {}, "steps_offset to 5"),
    ({"steps_offset": 5}, {"sample.spacing": "leading"}, {"spacing": "leading"}),
    ({"set_alpha_to_one": False}, {}, {"clip": True}),
    ({"set_alpha_to_one": False}, {"sample.solver": "ddim"}, "set_alpha_to_one false"),
    ({"variance_type": "fixed_large"}, {**CYCLE, "sample.clip": False}, "posterior"),
    ({}, CYCLE, "sample.clip is True, and cyclediffusion"),
]


@pytest.mark.parametrize(("fields", "keys", "wanted"), SAMPLERS)
def test_what_the_file_says_of_its_sampler_is_taken_or_refused(
    folder_of, task_of, tmp_path, fields, keys, wanted
):
    folder = folder_of(scheduler=fields)
    keys = {"sample.clip": None, "sample.spacing": None, "sample.steps": 5} | keys
    changes = {key.replace(".", "__"): value for key, value in keys.items()}
    if "method" in keys:
        changes["weights__source_score"] = folder
    config = task_of("diffusers/a_ddpm_root", weights__score=folder, **changes)
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted) as error:
            adoption.adopted(config, tmp_path)
        assert one_sentence(str(error.value))
    else:
        found = adoption.adopted(config, tmp_path).sample
        assert wanted.items() <= found.to_dict().items()


def test_what_is_left_open_follows_the_file_when_a_config_changes(folder_of, task_of, tmp_path):
    folder = folder_of(scheduler={"timestep_spacing": "trailing", "clip_sample": False})
    config = task_of("diffusers/a_ddpm_root", weights__score=folder, sample__spacing=None)
    config.sample.steps = None
    sampler, _ = load_sampler(config, tmp_path)
    assert sampler.config.sample.spacing == "index"
    config.sample.steps = 4
    sampler.update(config)
    assert sampler.config.sample.spacing == "trailing" and sampler.evaluations == 4
    page = Translator(adoption.adopted(config, tmp_path), tmp_path, ["spacing"])
    assert page.settings("sdedit", steps=3).sample.spacing == "trailing"


def test_the_sampler_is_no_part_of_the_network(folder_of, task_of, tmp_path):
    """Networks of one kind with other schedulers' sampling go together; imports ask no sampler."""
    other = folder_of(scheduler={"timestep_spacing": "trailing"})
    config = task_of("diffusers/a_ddpm_root", weights__source_score=other, method="ddib")
    config.sample.update(solver="ddim", eta=0.0)
    adoption.adopted(config, tmp_path)
    strict = folder_of(scheduler={"thresholding": True})
    config = task_of("diffusers/a_ddpm_root", weights__score=strict, sample__clip=None)
    with pytest.raises(ValueError, match="thresholding"):
        adoption.adopted(config, tmp_path)
    assert adoption.adopted(config, tmp_path, importing=True).sample.clip is False


@pytest.mark.slow
def test_another_size_than_the_files_is_said(task_of, tmp_path, caplog):
    for name, size, said in (
        ("diffusers/a_ddpm_root", 32, True),
        ("diffusers/a_ddpm_root", 16, False),
        ("score_sde/ncsnpp_ve.pth", 32, True),
        ("score_sde/ncsnpp_ve.pth", 16, False),
    ):
        caplog.clear()
        config = adoption.adopted(task_of(name, data__image_size=size), tmp_path)
        resolve.load(config, tmp_path, "score")
        told = "was made for images of 16² pixels, and config.data.image_size is 32"
        assert (told in caplog.text) == said


def test_an_exported_file_keeps_the_description(task_of, tmp_path):
    config = adoption.adopted(task_of("edm/ddpmpp_vp.pkl"), tmp_path)
    params, _ = resolve.load(config, tmp_path, "score")
    path = tmp_path / "network.safetensors"
    exported.save(path, config, "score", params, {})
    again = adoption.adopted(task_of("edm/ddpmpp_vp.pkl", weights__score=str(path)), tmp_path)
    assert again.score.published == config.score.published
    assert build.count_parameters(resolve.load(again, tmp_path, "score")[0]) > 1000
    assert json.loads(again.score.published)["arch"] == "SongUNet"


@pytest.mark.slow
def test_a_network_on_latents(golden, tiny):
    """It sees the autoencoder's latents; a start at the lowest level gives its reconstruction."""
    folder = golden / "latent" / "model" / "vae"
    fields, factor = diffusers.read_vae(folder)
    side = 16 // 2 ** (len(fields["widths"]) - 1)
    channels = fields["latent_channels"]
    net = {"input_size": side, "patch_size": 1, "in_channels": channels, "hidden_size": 16}
    net |= {"depth": 1, "num_heads": 2, "num_classes": 3, "null_class": True, "learn_sigma": True}
    path = {"state": "vp", "output": "eps", "time": {"kind": "levels", "schedule": "linear"}}
    told = published.Description(
        "DiT", net, path, side, 3, False, channels, {**fields, "factor": factor}
    )
    config = tiny(method="sdedit", sample__start=1, sample__steps=1)
    config.score.update(arch="published", published=published.to_text(told))
    adoption.check(config, told)
    params = {
        "score": random_params(config, "score"),
        latents.PARAMS: diffusers.load_vae(folder)[1],
    }
    images, ids = batch()
    states = Sampler(config, params).states(images, ids)[0]
    encoded = latents.encode(config, params, to_float(images))
    assert encoded.shape == (5, side, side, channels)
    expected = latents.decode(config, params, encoded)
    assert np.abs(states - expected).mean() < 0.1 * np.abs(expected).mean()


def test_a_published_network_takes_the_place_of_a_shipped_one(golden, tmp_path):
    """The task's shipped network of the source domain is needed by some methods alone."""
    folder = str(golden / "pixel" / "diffusers/a_ddpm_root")
    changes = {"weights.score": folder, "data.image_size": 16, "method": "sdedit"}
    config = adoption.adopted(load_config("twemoji2fluent", changes), tmp_path)
    assert config.score.arch == "published" and config.weights.source_score is None
    with pytest.raises(ValueError, match="--config.weights.source_score=None") as error:
        adoption.adopted(load_config("twemoji2fluent", {**changes, "method": "ddib"}), tmp_path)
    assert one_sentence(str(error.value))


def test_what_is_no_network_is_refused_with_the_right_advice(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = golden / "pixel" / "diffusers/a_ddpm_root"
    (inside,) = folder.glob("*.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.txt").write_text("weights")
    for name, words in {
        str(inside): f"belongs to a folder of diffusers: name {folder}",
        "empty": "name the file, or the folder with model_index.json",
        "w.txt": "--mode=import",
        "google/ddpm-cat-256": "write hf:google/ddpm-cat-256 for a model hub",
        "HF:google/ddpm-cat-256": "write hf:google/ddpm-cat-256 for a model hub",
        "empty/x": "check the path",
    }.items():
        config = load_config("twemoji2fluent", {"weights.score": name})
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            resolve.load(config, tmp_path, "score")
        assert one_sentence(str(error.value))
