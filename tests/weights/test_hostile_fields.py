"""JSON beside weights that no network can mean is refused at once, and costs no memory."""

import gc
import inspect
import json
import resource
import shutil
import sys
import time

import pytest
import refusals
from helpers import one_sentence

from cdsde.runtime import fields as json_fields
from cdsde.weights import diffusers, exported
from cdsde.weights.formats import diffusers_unet, dit, guided_diffusion, score_sde

# What is read -> the folder or file of the vectors, and its JSON files.
PLACES = {
    "unet": ("pixel/diffusers/a_ddpm_root", diffusers_unet.read),
    "ve": ("pixel/diffusers/c_ncsnpp", diffusers_unet.read),
    "shards": ("pixel/diffusers/b_train_unconditional", diffusers_unet.read),
    "guided": ("pixel/guided_diffusion/ema_0.9999_010000.pt", guided_diffusion.read),
    "vp": ("pixel/score_sde/ddpmpp_vp.pth", score_sde.read),
    "score": ("pixel/score_sde/ncsnpp_ve.pth", score_sde.read),
    "dit": ("pixel/dit/0050000.pt", dit.read),
    "sd unet": ("latent/model/unet", diffusers.load_unet),
    "sd vae": ("latent/model/vae", diffusers.load_vae),
    "sd text": ("latent/model/text_encoder", diffusers.load_text_encoder),
    "sd levels": ("latent/model/scheduler", diffusers.read_schedule),
}
CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
MANY = 10**9
# Numbers that are possible, but of which the weights are not enough.
FEW = [{"layers_per_block": 64}, {"num_res_blocks": 64}, {"num_hidden_layers": 256}]
CASES = [
    ("unet", CONFIG, FEW[0]),
    ("sd unet", CONFIG, FEW[0]),
    ("sd vae", CONFIG, FEW[0]),
    ("guided", "arguments", FEW[1]),
    ("sd text", CONFIG, FEW[2]),
    *(("unet", CONFIG, {"layers_per_block": n}) for n in (MANY, 10**400, "2", [2, 2])),
    *(("unet", CONFIG, {"block_out_channels": n}) for n in ([MANY] * 3, [8] * 300, "8", 8)),
    ("unet", CONFIG, {"num_class_embeds": 10**12}),
    ("unet", CONFIG, {"norm_eps": 10**400}),
    *(("unet", SCHEDULER, {"num_train_timesteps": n}) for n in (MANY, 10**11, -5, "x")),
    ("unet", SCHEDULER, {"num_train_timesteps": MANY, "beta_schedule": "squaredcos_cap_v2"}),
    ("unet", SCHEDULER, {"num_train_timesteps": 1, "trained_betas": [10**400]}),
    ("ve", f"scheduler/{SCHEDULER}", {"sigma_max": 10**400}),
    *(("guided", "arguments", {"num_res_blocks": n}) for n in (MANY, 0)),
    *(("guided", "arguments", {"num_channels": n}) for n in (MANY, -1)),
    ("guided", "arguments", {"NUM_CLASSES": 10**12}),
    ("guided", "arguments", {"image_size": 0}),
    *(("guided", "arguments", {"channel_mult": n})
      for n in ("inf,1", "nan,1", "1e9", "0,1", ",".join(["1"] * 300))),
    *(("vp", "model", {"beta_min": n}) for n in (None, "x", -1)),
    *(("vp", "model", {"beta_max": n}) for n in (1e9, 0.01)),
    *(("vp", "model", {"num_scales": n}) for n in (10**10, "x")),
    *(("vp", "training", {"continuous": n}) for n in (None, "yes")),
    ("score", "model", {"sigma_max": "x"}),
    ("score", "model", {"nf": MANY}),
    ("score", "model", {"fir_kernel": [0.0, 0.0, 0.0, 0.0]}),
    ("dit", "constructor", {"depth": MANY}),
    ("dit", "constructor", {"num_heads": 10**400}),
    *(("sd unet", CONFIG, {"layers_per_block": n}) for n in (MANY, "2", None)),
    *(("sd unet", CONFIG, {"block_out_channels": n}) for n in ([MANY, MANY], [8] * 300, "x")),
    ("sd unet", CONFIG, {"down_block_types": [["DownBlock2D"]]}),
    ("sd unet", CONFIG, {"norm_eps": "x"}),
    ("sd vae", CONFIG, {"layers_per_block": MANY}),
    ("sd vae", CONFIG, {"block_out_channels": [MANY]}),
    ("sd vae", CONFIG, {"latent_channels": MANY}),
    *(("sd text", CONFIG, {"num_hidden_layers": n}) for n in (MANY, "2")),
    *(("sd text", CONFIG, {"hidden_size": n}) for n in (MANY, [8])),
    ("sd text", CONFIG, {"layer_norm_eps": "x"}),
    ("sd levels", SCHEDULER, {"num_train_timesteps": MANY}),
]  # fmt: skip


@pytest.fixture
def copied(golden, tmp_path):
    """`copied(place)`: a copy of what is read, and the reader."""

    def copy(place):
        name, read = PLACES[place]
        source, target = golden / name, tmp_path / name.rpartition("/")[2]
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
            beside = source.with_suffix(".config.json")
            shutil.copy(beside, target.with_suffix(".config.json"))
        return target, read

    return copy


def refused(read, path) -> str:
    """The sentence of a refusal that took no time and no memory."""
    gc.disable()  # to go through what other tests have left can take longer than the refusal may
    try:
        begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError) as error:
            read(path)
        assert time.process_time() - begin < 1
    finally:
        gc.enable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kB
    assert one_sentence(str(error.value)) and len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.parametrize(
    ("place", "file", "fields"), CASES, ids=[f"{p} {str(f)[:40]}" for p, _, f in CASES]
)
def test_what_no_network_means_is_refused(copied, place, file, fields):
    path, read = copied(place)
    if path.is_dir():
        described = path / file
        told = json.loads(described.read_text()) | fields
    else:  # a section of the file beside the weights
        described = path.with_suffix(".config.json")
        told = json.loads(described.read_text())
        told[file] |= fields
        if "num_scales" in fields:
            told["training"]["continuous"] = False
    described.write_text(json.dumps(told))
    text = refused(read, path)
    assert path.name.partition(".")[0] in text, text
    told = ("blocks need more than its",) if fields in FEW else fields
    assert any(field in text for field in told), text


DEEP = [
    ("unet", "model_index.json"),
    ("unet", CONFIG),
    ("unet", SCHEDULER),
    ("shards", "unet/diffusion_pytorch_model.safetensors.index.json"),
    ("sd unet", "diffusion_pytorch_model.safetensors.index.json"),
    ("sd levels", SCHEDULER),
    ("guided", None),
    ("vp", None),
    ("dit", None),
]


@pytest.mark.parametrize(("place", "file"), DEEP)
def test_deep_json_is_refused(copied, place, file):
    path, read = copied(place)
    described = path / file if file else path.with_suffix(".config.json")
    described.write_text("[" * 200_000)
    assert described.name in refused(read, path)


def test_a_deep_card_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[" * 200_000)
    assert "x.json is not readable JSON" in refused(exported.read_card, tmp_path / "x.safetensors")


def test_an_index_names_files_of_its_own_folder_alone(copied):
    path, read = copied("sd unet")
    index = path / "diffusion_pytorch_model.safetensors.index.json"
    for table in (["x"], {"weight_map": {"x": "../x.safetensors"}}, {"weight_map": 1}):
        index.write_text(json.dumps(table))
        assert index.name in refused(read, path)


def test_large_json_is_refused_unread(copied):
    path, read = copied("unet")
    (path / CONFIG).write_text("[" + "[]," * 8 * 10**6 + "0]")
    text = refusals.refused(read, path, "has 24,000,003 bytes, and no file of fields more")
    assert CONFIG in text


def test_json_of_the_largest_size_costs_little(copied):
    path, read = copied("unet")
    (path / CONFIG).write_text("[" + "[]," * (json_fields.LARGEST_FILE // 3 - 1) + "0]")
    refusals.refused(read, path, "is little else than lists")
    (path / CONFIG).write_text("[" + "[123456]," * (json_fields.LARGEST_FILE // 9 - 1) + "0]")
    refusals.refused(read, path, "holds no JSON object", peak=2**26)


def test_json_that_can_be_read_but_not_written(copied):
    """Python reads what is nested so deeply that a function a little further in cannot print it."""
    path, read = copied("unet")
    told = json.dumps(json.loads((path / CONFIG).read_text()) | {"shiny": 1})
    most = sys.getrecursionlimit() - len(inspect.stack(0))
    for depth in range(most - 40, most):
        deep = "[" * depth + "]" * depth
        (path / CONFIG).write_text(told.replace('"shiny": 1', f'"shiny": {deep}'))
        assert CONFIG in refused(read, path)
