"""Fields of a model's JSON files: each is honoured or refused by its name, none is ignored."""

import json
import shutil

import numpy as np
import pytest
from helpers import one_sentence
from safetensors.numpy import load_file, save_file

from cdsde.diffusion import schedules
from cdsde.editing import ddim
from cdsde.weights import diffusers


@pytest.fixture
def model(golden, tmp_path):
    """`model(part, file, **fields)`: the folder of a part, with fields of its file changed."""

    def changed(part, name="config.json", drop=(), **fields):
        source, folder = golden / "latent" / part, tmp_path / part
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, folder)
        config = json.loads((source / name).read_text()) | fields
        config = {key: value for key, value in config.items() if key not in drop}
        (folder / name).write_text(json.dumps(config))
        return folder

    return changed


def schedule(model, drop=(), **fields):
    folder = model("model/scheduler", "scheduler_config.json", drop, **fields)
    return diffusers.read_schedule(folder)


def refused(make, *parts):
    with pytest.raises(ValueError) as error:
        make()
    text = str(error.value)
    assert one_sentence(text) and all(part in text for part in parts), text


# --- the scheduler ---


def test_the_clean_level_is_that_of_the_class_where_the_file_is_silent(model):
    """As in diffusers: DDIM's sampling ends at 1, and PNDM's at ᾱ_0."""
    plain, key = schedule(model), "set_alpha_to_one"
    ddim_file = {"_class_name": "DDIMScheduler", "clip_sample": False}
    silent = [schedule(model, [key], **fields) for fields in (ddim_file, {})]
    assert silent[1].clean_alpha_bar == plain.clean_alpha_bar == plain.alpha_bar[0] < 1
    for one in (silent[0], schedule(model, set_alpha_to_one=True)):
        assert one.clean_alpha_bar == 1
        assert ddim.sampling(one, 50).end[-1] == 1


def test_betas_are_honoured(model):
    betas = np.linspace(1e-3, 0.1, 1000, dtype=np.float32)
    got = schedule(model, trained_betas=betas.tolist()).alpha_bar
    exact = np.cumprod((1 - betas).astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(got, exact)
    short = schedule(model, num_train_timesteps=500, beta_schedule="linear").alpha_bar
    assert len(short) == 500 and short[-1] > 1e-3
    cosine = schedule(model, beta_schedule="squaredcos_cap_v2").alpha_bar
    np.testing.assert_allclose(cosine[499], np.cos(np.pi / 2 * 0.508 / 1.008) ** 2, rtol=1e-3)


def test_predictions_are_honoured(model):
    for kind in ("epsilon", "v_prediction", "sample"):
        assert schedule(model, prediction_type=kind).prediction == kind
    assert schedule(model, steps_offset=0).offset == schedule(model, ["steps_offset"]).offset == 0


SCHEDULER = [
    ("rescale_betas_zero_snr", True),
    ("rescale_betas_zero_snr", "yes"),
    ("timestep_spacing", "trailing"),
    ("timestep_spacing", "linspace"),
    ("timestep_spacing", None),
    ("clip_sample", True),
    ("clip_sample", 1),
    ("thresholding", True),
    ("prediction_type", "flow_prediction"),
    ("prediction_type", None),
    ("prediction_type", "score"),
    ("set_alpha_to_one", None),
    ("set_alpha_to_one", 0),
    ("trained_betas", [0.1, 0.2]),
    ("trained_betas", "linear"),
    ("trained_betas", [0.1] * 999 + [1.5]),
    ("trained_betas", [0.1] * 999 + [float("nan")]),
    ("beta_schedule", "sigmoid"),
    ("beta_schedule", None),
    ("beta_start", "0.1"),
    ("beta_start", -0.1),
    ("beta_end", 1.5),
    ("beta_end", float("nan")),
    ("num_train_timesteps", 0),
    ("num_train_timesteps", 10.5),
    ("steps_offset", -1),
    ("steps_offset", 1000),
    ("use_karras_sigmas", True),
    ("use_flow_sigmas", True),
    ("sigma_max", 80.0),
    ("_class_name", "FlowMatchEulerDiscreteScheduler"),
    ("_class_name", "EDMEulerScheduler"),
    ("_class_name", "LCMScheduler"),
    ("shift", 3.0),
    ("a_field_of_tomorrow", 2),
]


@pytest.mark.parametrize(("field", "value"), SCHEDULER, ids=lambda x: str(x)[:20])
def test_a_scheduler_that_means_something_else_is_refused_by_name(model, field, value):
    refused(lambda: schedule(model, **{field: value}), field, "scheduler_config.json")


def test_absent_fields_have_the_defaults_of_diffusers(model):
    fields = ["beta_start", "beta_end", "beta_schedule"]
    found = schedule(model, [*fields, "num_train_timesteps"]).alpha_bar
    np.testing.assert_array_equal(found, schedules.linear().alpha_bar)
    heun = schedule(model, fields, _class_name="HeunDiscreteScheduler").alpha_bar
    np.testing.assert_array_equal(heun, schedules.linear(1000, 0.00085, 0.012).alpha_bar)
    folder = model("model/scheduler", "scheduler_config.json", ["timestep_spacing"])
    assert diffusers.read_scheduler(folder).spacing == "leading"
    assert diffusers.read_scheduler(folder, "UniPCMultistepScheduler").spacing == "linspace"
    longer = schedule(model, fields, num_train_timesteps=4000).alpha_bar
    np.testing.assert_array_equal(longer, schedules.linear(4000).alpha_bar)


def test_clipping_is_the_default_of_some_classes(model):
    refused(lambda: schedule(model, ["clip_sample"], _class_name="DDIMScheduler"), "clip_sample")
    for name in ("PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        assert len(schedule(model, ["clip_sample"], _class_name=name).alpha_bar) == 1000


def test_a_pixel_models_scheduler_is_read_whole(model):
    """diffusers' own numbers: √ᾱ keeps its first value and ends at 0."""
    plain = schedule(model).alpha_bar
    folder = model(
        "model/scheduler", "scheduler_config.json", rescale_betas_zero_snr=True,
        timestep_spacing="trailing", clip_sample=True, clip_sample_range=2.0,
    )  # fmt: skip
    found = diffusers.read_scheduler(folder)
    assert (found.spacing, found.clip, found.prediction) == ("trailing", 2.0, "epsilon")
    assert found.alpha_bar[-1] == 0 and found.clean == found.alpha_bar[0]
    np.testing.assert_allclose(found.alpha_bar[0], plain[0], rtol=1e-6)
    root = np.sqrt(plain.astype(np.float64))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(found.alpha_bar, root**2, atol=1e-6)


def test_a_file_that_is_no_json_is_named(model):
    folder = model("model/scheduler", "scheduler_config.json")
    for text in ("{", "[1]", ""):
        (folder / "scheduler_config.json").write_text(text)
        refused(lambda: diffusers.read_schedule(folder), "scheduler_config.json")


# --- the networks ---

NETWORKS = [
    ("unet", "act_fn", "gelu"),
    ("unet", "flip_sin_to_cos", False),
    ("unet", "freq_shift", 1),
    ("unet", "center_input_sample", True),
    ("unet", "mid_block_scale_factor", 2),
    ("unet", "time_cond_proj_dim", 256),
    ("unet", "downsample_padding", 0),
    ("unet", "resnet_time_scale_shift", "scale_shift"),
    ("unet", "only_cross_attention", True),
    ("unet", "mid_block_type", "UNetMidBlock2D"),
    ("unet", "transformer_layers_per_block", [1, 2, 2, 1]),
    ("unet", "in_channels", 9),
    ("unet", "out_channels", 8),
    ("unet", "layers_per_block", [2, 2, 2, 2]),
    ("unet", "cross_attention_dim", None),
    ("unet", "norm_num_groups", None),
    ("unet", "_class_name", "UNet2DModel"),
    ("unet", "a_field_of_tomorrow", 2),
    ("vae", "shift_factor", 0.1159),
    ("vae", "latents_mean", [0.0, 0.0, 0.0, 1.0]),
    ("vae", "latents_std", [1.0, 1.0, 1.0, 2.0]),
    ("vae", "act_fn", "relu"),
    ("vae", "use_quant_conv", False),
    ("vae", "mid_block_add_attention", False),
    ("vae", "down_block_types", ["AttnDownEncoderBlock2D"] * 4),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", "0.2"),
    ("vae", "_class_name", "VQModel"),
    ("vae", "a_field_of_tomorrow", 2),
    ("text_encoder", "hidden_act", "relu6"),
    ("text_encoder", "model_type", "t5"),
    ("text_encoder", "is_decoder", True),
    ("text_encoder", "hidden_size", None),
    ("text_encoder", "a_field_of_tomorrow", 2),
]
LOADERS = {
    "unet": diffusers.load_unet,
    "vae": diffusers.load_vae,
    "text_encoder": diffusers.load_text_encoder,
}


@pytest.mark.parametrize(("part", "field", "value"), NETWORKS, ids=lambda x: str(x)[:20])
def test_a_network_that_is_another_one_is_refused_by_name(model, part, field, value):
    folder = model(f"model/{part}", **{field: value})
    refused(lambda: LOADERS[part](folder), field, "config.json")


MISFITS = [
    ("unet", "block_out_channels", []),
    ("unet", "block_out_channels", 32),
    ("unet", "block_out_channels", [16, 24, 32, 0]),
    ("unet", "block_out_channels", [16, 24, 32, 32, 32]),
    ("unet", "attention_head_dim", 0),
    ("unet", "attention_head_dim", -1),
    ("unet", "attention_head_dim", [2]),
    ("unet", "attention_head_dim", 3),
    ("unet", "attention_head_dim", [4, 4, 5, 4]),
    ("unet", "num_attention_heads", 0),
    ("unet", "num_attention_heads", 3),
    ("unet", "norm_num_groups", 0),
    ("unet", "norm_num_groups", 7),
    ("unet", "norm_eps", -1),
    ("unet", "layers_per_block", 0),
    ("vae", "block_out_channels", 5),
    ("vae", "block_out_channels", []),
    ("vae", "norm_num_groups", 5),
    ("vae", "latent_channels", 0),
    ("text_encoder", "num_attention_heads", 0),
    ("text_encoder", "num_attention_heads", 3),
    ("text_encoder", "eos_token_id", None),
    ("text_encoder", "eos_token_id", "x"),
    ("text_encoder", "eos_token_id", [1]),
    ("text_encoder", "eos_token_id", 1014),
    ("text_encoder", "layer_norm_eps", -1),
]


@pytest.mark.parametrize(("part", "field", "value"), MISFITS, ids=lambda x: str(x)[:20])
def test_numbers_that_make_no_network_are_refused_by_name(model, part, field, value):
    folder = model(f"model/{part}", **{field: value})
    refused(lambda: LOADERS[part](folder), field, f"{folder}/config.json ")


def test_heads_are_one_number_or_one_a_level(model):
    def heads(**fields):
        return diffusers.unet_of(diffusers.read_config(model("model/unet", **fields))).heads

    assert heads() == heads(attention_head_dim=None, num_attention_heads=4) == (4, 4, 4, 4)
    # The level without attention may have any, but the last, whose number the middle takes.
    assert heads(attention_head_dim=[2, 3, 4, 8]) == (2, 3, 4, 8)
    assert heads(attention_head_dim=None) == (8, 8, 8, 8)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("name", ["clip", "blip"])
def test_parts_of_models_of_images_and_texts_are_checked_too(model, golden, name, part):
    inner = json.loads((golden / "latent" / name / "config.json").read_text())[part]
    load = diffusers.load_clip if name == "clip" else diffusers.load_blip
    for field, value in (("hidden_act", "relu6"), ("a_field_of_tomorrow", 1), ("heads", 2)):
        folder = model(name, **{part: inner | {field: value}})
        refused(lambda folder=folder: load(folder), field, "config.json")
    folder = model(name, drop=[part])
    refused(lambda: load(folder), part)
    for value in (None, "x", 3, [inner]):
        folder = model(name, **{part: value})
        refused(lambda folder=folder: load(folder), f"sets {part} to", "must be an object")


def test_fields_without_an_effect_are_taken(model):
    fine = {"sample_size": 64, "dropout": 0.1, "upcast_attention": True, "act_fn": "swish"}
    diffusers.unet_of(diffusers.read_config(model("model/unet", **fine)))
    factor = diffusers.load_vae(model("model/vae", force_upcast=True, scaling_factor=0.5))[2]
    assert factor == 0.5


def test_damaged_weights_of_a_model_are_refused(model):
    folder = model("model/vae")
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["encoder.conv_in.bias"] = np.full_like(weights["encoder.conv_in.bias"], np.nan)
    save_file(weights, path)
    refused(lambda: diffusers.load_vae(folder), "encoder.conv_in.bias", "NaN", str(folder))
