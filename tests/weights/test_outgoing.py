"""Published score networks go out as what they are, or a sentence says why not."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import one_sentence
from network_helpers import error, noise
from safetensors.numpy import load_file

from cdsde.networks import published
from cdsde.weights import adoption, exchange, resolve
from cdsde.weights.formats import diffusers_unet, guided_diffusion, registry
from cdsde.weights.torch import convert

GUIDED = "guided_diffusion/ema_0.9999_010000.pt"
FOLDER = "diffusers/a_ddpm_root"
LABELS = {GUIDED: 1, "dit/0050000.pt": 3, "edm/adm_edm_cond.pkl": 2}
pytestmark = pytest.mark.usefixtures("exact_products", "compile_quickly")


@pytest.fixture
def task_of(golden, tiny):
    """`task_of(name, format, path)`: a task with a file of the vectors, to be exported."""

    def make(name, form, path=None, **changes):
        source = name if str(name).startswith("/") else golden / "pixel" / name
        keys = {"weights__score": str(source), "score__label": LABELS.get(name)}
        keys |= {"export__format": form, "export__path": path and str(path)}
        return tiny(method="sdedit", sample__start=300, **keys | changes)

    return make


def exported(config, workdir):
    return exchange.export_weights(adoption.adopted(config, workdir), workdir)


def description_of(config, workdir):
    return published.of_text(adoption.adopted(config, workdir).score.published)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_guided_diffusion_goes_out_as_it_came(golden, task_of, tmp_path, suffix):
    """The arrays under their names, and beside them what they do not tell."""
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"network{suffix}"
    config = task_of(GUIDED, "published", path)
    assert exported(config, tmp_path) == path
    expected = convert.read_state_dict(golden / "pixel" / GUIDED, plain=True)
    found = convert.read_state_dict(path, plain=True)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    again = task_of(GUIDED, "published", weights__score=str(path))
    assert description_of(again, tmp_path) == description_of(config, tmp_path)


def test_arguments_are_told_again():
    changes = [
        {},
        {"image_size": 256, "attention_resolutions": "32,16,8", "class_cond": True},
        {"channel_mult": "0.5,1,2", "image_size": 32, "learn_sigma": True, "NUM_CLASSES": 7},
        {"diffusion_steps": 4000, "rescale_timesteps": True, "noise_schedule": "cosine"},
        {"predict_xstart": True, "num_heads_upsample": 2, "resblock_updown": True},
    ]
    for change in changes:
        arguments = guided_diffusion.DEFAULTS | change
        fields, path = guided_diffusion.fields_of(arguments), guided_diffusion.path_of(arguments)
        told = guided_diffusion.arguments_of(fields, path, arguments["image_size"])
        assert told.keys() == arguments.keys()
        assert (guided_diffusion.fields_of(told), guided_diffusion.path_of(told)) == (fields, path)
    path["time"]["alpha_bar"][0] = 0.5
    with pytest.raises(ValueError, match="its noise is neither linear nor cosine"):
        guided_diffusion.arguments_of(fields, path, 64)


def test_guided_diffusion_becomes_a_pipeline(golden, task_of, tmp_path):
    folder = exported(task_of(GUIDED, "diffusers"), tmp_path)
    assert folder == tmp_path / "export" / "score"
    source = guided_diffusion.read(golden / "pixel" / GUIDED)
    found = diffusers_unet.read(folder)
    assert found.path["output"] == source.path["output"]
    levels = (np.asarray(opened.path["time"]["alpha_bar"]) for opened in (found, source))
    np.testing.assert_allclose(*levels, rtol=2e-6)
    x, y = np.moveaxis(noise(1, 0, (2, 3, 16, 16)), 1, -1), np.array([5, 0])
    t = np.float32([3, 900])
    got, expected = (
        np.asarray(jax.jit(published.module(adoption.describe(o), "float32", False).apply)(
            o.params, x, t, y=y
        ))
        for o in (found, source)
    )  # fmt: skip
    assert got.shape[-1] == 6 and error(got, expected) < 1e-5
    told = adoption.describe(found)
    assert (told.classes, told.needs_class, published.learns_variance(told)) == (6, True, True)


SCHEDULES = [
    {},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"beta_schedule": "scaled_linear", "prediction_type": "sample"},
    {"clip_sample": False, "timestep_spacing": "trailing", "variance_type": "fixed_large"},
    {"clip_sample_range": 2.0, "timestep_spacing": "linspace", "steps_offset": 3},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    {"set_alpha_to_one": False},
]


@pytest.mark.parametrize("scheduler", SCHEDULES, ids=str)
def test_a_folder_goes_out_as_it_came(golden, task_of, tmp_path, scheduler):
    source = tmp_path / "source"
    shutil.copytree(golden / "pixel" / FOLDER, source)
    file = source / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
    folder = exported(task_of(str(source), "diffusers", tmp_path / "out"), tmp_path)
    (before,) = source.glob("*.safetensors")
    after = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    expected = load_file(before)
    assert after.keys() == expected.keys()
    assert all(np.array_equal(after[key], expected[key]) for key in expected)
    one, other = diffusers_unet.read(source), diffusers_unet.read(folder)
    assert (one.fields, one.path["output"]) == (other.fields, other.path["output"])
    assert one.sampler == other.sampler
    levels = (np.asarray(opened.path["time"]["alpha_bar"]) for opened in (one, other))
    np.testing.assert_allclose(*levels, rtol=3e-6)


@pytest.mark.slow
def test_an_imported_network_goes_out(golden, task_of, tmp_path):
    exchange.import_weights(adoption.adopted(task_of(GUIDED, "published"), tmp_path), tmp_path)
    alone = task_of(GUIDED, "published", weights__score=None)
    expected = convert.read_state_dict(golden / "pixel" / GUIDED, plain=True)
    found = convert.read_state_dict(exported(alone, tmp_path))
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


UNSUPPORTED = [
    (GUIDED, "cdsde", "guided-diffusion, .* has a card .*; choose published or diffusers or st"),
    (FOLDER, "published", "one of diffusers, .* is not written for these; choose diffusers or st"),
    (FOLDER, "cdsde", "has a card about a training that cdsde does not know; choose diffusers or"),
    ("diffusers/c_ncsnpp", "diffusers", "exported as diffusers: its noise levels are not those"),
    *(("edm/ddpmpp_vp.pkl", form, f"EDM, .* '{form}', .*; choose stablehlo")
      for form in ("published", "diffusers", "cdsde")),
    ("score_sde/ncsnpp_ve.pth", "published", "score_sde_pytorch, .*; choose stablehlo"),
    ("dit/0050000.pt", "diffusers", "one of DiT, .*; choose stablehlo"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "told"), UNSUPPORTED)
def test_what_has_no_such_format_is_told(task_of, tmp_path, name, form, told):
    with pytest.raises(ValueError, match=told) as caught:
        exported(task_of(name, form), tmp_path)
    assert one_sentence(str(caught.value))
    assert not (tmp_path / "export").exists()


def test_levels_without_a_signal_are_told(golden, task_of, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(golden / "pixel" / FOLDER, source)
    file = source / "scheduler_config.json"
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    file.write_text(json.dumps(json.loads(file.read_text()) | zero))
    with pytest.raises(ValueError, match="its last level has no signal"):
        exported(task_of(str(source), "diffusers"), tmp_path)


def test_heads_that_differ_are_told(golden, task_of, tmp_path):
    shutil.copy(golden / "pixel" / GUIDED, path := tmp_path / "x.pt")
    beside = json.loads((golden / "pixel" / GUIDED).with_suffix(".config.json").read_text())
    beside["arguments"] |= {"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}
    path.with_suffix(".config.json").write_text(json.dumps(beside))
    config = task_of(str(path), "diffusers", score__label=1)
    with pytest.raises(ValueError, match="num_heads_upsample is 2 and num_heads 4; encoder and"):
        exported(config, tmp_path)
    assert registry.format_of(str(path)) == "guided_diffusion"
    assert resolve.load(adoption.adopted(config, tmp_path), tmp_path, "score")
