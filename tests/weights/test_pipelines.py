"""Folders of diffusers' pixel pipelines: every layout is read, and what differs is refused."""

import json
import os
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest
from helpers import one_sentence
from memory_helpers import on_linux, peak_of
from safetensors.numpy import load_file, save_file

from cdsde.diffusion import paths
from cdsde.weights.formats import diffusers_unet

STEM = "diffusion_pytorch_model"


@pytest.fixture
def vectors(golden):
    return golden / "pixel" / "diffusers"


@pytest.fixture
def pipeline(vectors, tmp_path):
    """`pipeline(name, file, **fields)`: a copy of a folder, with fields of a file changed."""

    def changed(name, file="model_index.json", drop=(), **fields):
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(vectors / name, folder)
        config = json.loads((folder / file).read_text()) | fields
        config = {key: value for key, value in config.items() if key not in drop}
        (folder / file).write_text(json.dumps(config))
        return folder

    return changed


def assert_same(found, expected):
    assert (found.arch, found.fields, found.path) == (expected.arch, expected.fields, expected.path)
    same = jax.tree.map(np.array_equal, found.params, expected.params)
    assert all(jax.tree.leaves(same))


def test_every_layout_is_the_same_network(vectors, pipeline):
    """One folder or three, safetensors or `.bin`, half a name of 2022 or today's, or a variant."""
    expected = diffusers_unet.read(vectors / "a_ddpm_root")
    assert_same(diffusers_unet.read(vectors / "a_ddpm_root_old"), expected)
    root = pipeline("a_ddpm_root")
    (root / "unet").mkdir()
    (root / "scheduler").mkdir()
    weights = load_file(root / f"{STEM}.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, early in old.items():
        weights = {key.replace(new, early): value for key, value in weights.items()}
    save_file(weights, root / "unet" / f"{STEM}.ema.safetensors")
    (root / f"{STEM}.safetensors").unlink()
    (root / "config.json").rename(root / "unet" / "config.json")
    (root / "scheduler_config.json").rename(root / "scheduler" / "scheduler_config.json")
    assert_same(diffusers_unet.read(root), expected)
    save_file(weights, root / "unet" / f"{STEM}.fp16.safetensors")
    refused(root, "ema.safetensors", "leave one of them")


def in_two_files(unet, suffix, save):
    """Cuts the weights of a folder into two files, which `save(arrays, path)` writes; the index."""
    weights = load_file(unet / f"{STEM}.safetensors")
    (unet / f"{STEM}.safetensors").unlink()
    shards = {key: f"{STEM}-0000{n % 2 + 1}-of-00002{suffix}" for n, key in enumerate(weights)}
    for name in set(shards.values()):
        save({k: v for k, v in weights.items() if shards[k] == name}, unet / name)
    index = unet / f"{STEM}{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    return index


def test_weights_in_several_files(vectors, pipeline):
    expected = diffusers_unet.read(vectors / "b_train_unconditional")
    folder = pipeline("b_train_unconditional")
    index = in_two_files(folder / "unet", ".safetensors", save_file)
    assert_same(diffusers_unet.read(folder), expected)
    for wrong in ({}, {"x": "../x.safetensors"}, {"x": ["y"]}):
        index.write_text(json.dumps({"weight_map": wrong}))
        refused(folder, index.name)


def test_weights_of_pytorch_in_several_files(vectors, pipeline):
    torch = pytest.importorskip("torch")
    expected = diffusers_unet.read(vectors / "b_train_unconditional")
    folder = pipeline("b_train_unconditional")
    tensors = lambda arrays: {k: torch.from_numpy(v) for k, v in arrays.items()}  # noqa: E731
    in_two_files(folder / "unet", ".bin", lambda arrays, path: torch.save(tensors(arrays), path))
    assert_same(diffusers_unet.read(folder), expected)


def test_half_precision_and_early_copies(vectors, pipeline):
    expected = diffusers_unet.read(vectors / "c_ncsnpp")
    folder = pipeline("c_ncsnpp")
    path = folder / "unet" / f"{STEM}.safetensors"
    weights = load_file(path)
    weights["time_proj.W"] = weights["time_proj.weight"]
    save_file(weights, path)
    assert_same(diffusers_unet.read(folder), expected)
    path.unlink()
    half = {key: value.astype(np.float16) for key, value in weights.items()}
    save_file(half, folder / "unet" / f"{STEM}.fp16.safetensors")
    for got, full in zip(
        jax.tree.leaves(diffusers_unet.read(folder).params),
        jax.tree.leaves(expected.params),
        strict=True,
    ):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, full, rtol=1e-3, atol=1e-6)


def test_ddim_reads_the_file_of_another_scheduler(pipeline):
    folder = pipeline("a_ddpm_root", _class_name="DDIMPipeline")
    assert diffusers_unet.read(folder).path["output"] == "eps"
    folder = pipeline("a_ddpm_root", "scheduler_config.json", beta_schedule="sigmoid")
    assert diffusers_unet.read(folder).path["time"]["alpha_bar"][0] < 1
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("DDPMPipeline", "DDIMPipeline"))
    refused(folder, "scheduler_config.json", "sigmoid")  # which diffusers' DDIMScheduler has not


@pytest.mark.parametrize("prediction", diffusers_unet.OUTPUTS)
def test_what_the_network_sees_is_told(pipeline, prediction):
    fields = {"prediction_type": prediction, "thresholding": True, "variance_type": "fixed_large"}
    seen = diffusers_unet.read(pipeline("a_ddpm_root", "scheduler_config.json", **fields)).path
    assert seen["output"] == diffusers_unet.OUTPUTS[prediction]
    assert json.loads(json.dumps(seen)) == seen
    path = paths.Path(**seen)
    alpha_bar = np.float64(seen["time"]["alpha_bar"])
    table = paths.tables(path, alpha_bar)
    # On its own levels the network is told their numbers, and sees our state as it is.
    np.testing.assert_allclose(table.time, np.arange(len(alpha_bar)), atol=1e-6)
    np.testing.assert_allclose(table.k, 1, rtol=1e-12)
    assert paths.levels_known(path, alpha_bar) == len(alpha_bar)


def test_what_a_network_of_scores_sees_is_told(vectors):
    path = paths.Path(**diffusers_unet.read(vectors / "c_ncsnpp").path)
    alpha_bar = np.array([0.9, 0.1])
    sigma = np.sqrt(1 / alpha_bar - 1) / 2  # of images in [0, 1]
    table = paths.tables(path, alpha_bar)
    np.testing.assert_allclose(table.time, sigma)
    np.testing.assert_allclose(table.q, -sigma)


def refused(folder, *parts):
    with pytest.raises(ValueError) as error:
        diffusers_unet.read(folder)
    text = str(error.value)
    assert one_sentence(text) and all(part in text for part in parts), text


INDEX = [
    {"unet": ["diffusers", "UNet2DConditionModel"]},
    {"unet": "UNet2DModel"},
    {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
    {"vqvae": ["diffusers", "VQModel"]},
]


@pytest.mark.parametrize("fields", INDEX, ids=lambda x: next(iter(x)))
def test_another_pipeline_is_refused(pipeline, fields):
    name, value = next(iter(fields.items()))
    refused(pipeline("a_ddpm_root", **fields), "model_index.json", name, value[-1])


SCHEDULER = {
    "variance_type": ["fixed_large_log", "learned_range", 3],
    "rescale_betas_zero_snr": ["yes"],
    "thresholding": [1],
    "beta_schedule": ["exp"],
    "prediction_type": ["flow_prediction"],
    "clip_sample_range": [0],
    "use_karras_sigmas": [True],
    "a_field_of_tomorrow": [1],
}


@pytest.mark.parametrize(("field", "value"), [(k, v) for k in SCHEDULER for v in SCHEDULER[k]])
def test_a_scheduler_that_means_something_else_is_refused(pipeline, field, value):
    folder = pipeline("a_ddpm_root", "scheduler_config.json", **{field: value})
    refused(folder, "scheduler_config.json", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sigma_min", 0), ("sigma_max", 0.001), ("sigma_max", None), ("_class_name", "DDPMScheduler")],
)
def test_a_scheduler_of_scores_is_checked(pipeline, field, value):
    folder = pipeline("c_ncsnpp", "scheduler/scheduler_config.json", **{field: value})
    refused(folder, "scheduler_config.json", field)


def test_features_of_sigma_belong_to_scores(pipeline):
    folder = pipeline("c_ncsnpp", scheduler=["diffusers", "DDPMScheduler"])
    refused(folder, "config.json", "'fourier'", "DDPMScheduler")


NETWORK = {
    "_class_name": ["UNet2DConditionModel"],
    "act_fn": ["tanh", None],
    "time_embedding_type": ["learned"],
    "resnet_time_scale_shift": ["spatial"],
    "mid_block_type": ["UNetMidBlock2DCrossAttn"],
    "class_embed_type": ["projection"],
    "downsample_padding": [2],
    "downsample_type": ["fir"],
    "block_out_channels": [[8, 8], [8, 8, 12.5], [], 8, [8, 8, 0]],
    "down_block_types": [["DownBlock2D"] * 2 + ["KDownBlock2D"], ["SkipDownBlock2D"] * 2, "Down"],
    "up_block_types": [["SkipUpBlock2D", "UpBlock2D", "UpBlock2D"], ["DownBlock2D"] * 3],
    "layers_per_block": [0, 1.5, None, True],
    "norm_num_groups": [None, 0, "4"],
    "norm_eps": [0, "small"],
    "attention_head_dim": [-1, [8, 8, 8]],
    "center_input_sample": [None, 1],
    "in_channels": [6],
    "a_field_of_tomorrow": [1],
}


@pytest.mark.parametrize(("field", "value"), [(k, v) for k in NETWORK for v in NETWORK[k]])
def test_a_network_that_is_another_one_is_refused(pipeline, field, value):
    refused(pipeline("a_ddpm_root", "config.json", **{field: value}), "config.json", field)


def test_fields_of_early_and_late_files_that_change_nothing(vectors):
    config = json.loads((vectors / "a_ddpm_root" / "config.json").read_text())
    expected = diffusers_unet.fields_of(config, "config.json")
    early = [f"UNetRes{name}" for name in config["down_block_types"]]
    other = {"downsample_type": None, "act_fn": "SiLU", "sample_size": [16, 8], "dropout": 0.1}
    found = diffusers_unet.fields_of(config | other | {"down_block_types": early}, "config.json")
    assert found == expected


@pytest.mark.parametrize("name", ["a_ddpm_root", "a_ddpm_root_old"])
def test_weights_that_do_not_fit_are_listed(pipeline, name):
    # With one head as wide as 8 of its 12 channels, the middle has other shapes.
    folder = pipeline(name, "config.json", attention_head_dim=8)
    refused(folder, "does not fit its config.json", "mid_block.attentions.0.to_q.weight: file")
    folder = pipeline(name, "config.json", layers_per_block=1)
    refused(folder, "unexpected", "down_blocks.0.resnets.1")
    path = next(folder.glob(f"{STEM}*"))
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, path.name, "not a readable")
    path.unlink()
    refused(folder, "holds no weights", STEM)


def test_damaged_weights_are_named(pipeline):
    folder = pipeline("b_train_unconditional")
    path = folder / "unet" / f"{STEM}.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"][0] = np.nan
    save_file(weights, path)
    refused(folder, "conv_in.bias", "NaN")
    save_file({"x": np.zeros(1)}, path)
    refused(folder, "missing", "unexpected (x)")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_bin_that_would_run_code_or_burst_is_refused(pipeline, tmp_path):
    folder = pipeline("a_ddpm_root_old")
    path = folder / f"{STEM}.bin"
    for compression, content, told in (
        (zipfile.ZIP_STORED, {"x": Malicious(tmp_path / "executed")}, "mkdir"),
        (zipfile.ZIP_DEFLATED, {"x": "0" * 50_000_000}, "compressed"),
        (zipfile.ZIP_STORED, {"x": 1}, "no plain table of named tensors"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("w/data.pkl", pickle.dumps(content, protocol=2))
        refused(folder, path.name, told)
    assert not (tmp_path / "executed").exists()


def test_missing_parts_are_named(pipeline):
    for file in ("model_index.json", "config.json", "scheduler_config.json"):
        folder = pipeline("a_ddpm_root")
        (folder / file).unlink()
        refused(folder, file)
    refused(pipeline("a_ddpm_root", drop=["scheduler"]), "names no scheduler")


@pytest.mark.slow
@on_linux
def test_memory_holds_a_network_once(vectors, tmp_path):
    entries = json.loads((vectors / "full_size.json").read_text()).items()
    config = next(entry["cfg"] for name, entry in entries if "cat-256" in name)
    fields = diffusers_unet.fields_of(config, "config.json")
    network = diffusers_unet.module(fields)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *diffusers_unet.inputs(network))
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
    scheduler = json.loads((vectors / "a_ddpm_root" / "scheduler_config.json").read_text())
    diffusers_unet.write(tmp_path, fields, params, scheduler, 256)
    size = (tmp_path / "unet" / f"{STEM}.safetensors").stat().st_size
    assert size > 450e6
    reader = "from cdsde.weights.formats import diffusers_unet"
    assert peak_of(reader, "diffusers_unet.read(sys.argv[1])", tmp_path) < 1.3 * size
