"""Published weights come in whole or with a report of what is wrong, and go out unchanged."""

import json
import os
import pickle
import re
import resource
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_helpers import on_linux, peak_of
from pixel_vectors import save
from safetensors.flax import save_file as save_flax
from safetensors.numpy import save_file as save_numpy

from cdsde.networks import ADMEncoder, ADMUNet, DDPMUNet
from cdsde.weights.torch import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "egsde"
FILES = {
    "adm": ("adm_unet", {"num_head_channels": 16}),
    "ddpm": ("ddpm_unet", {"image_size": 32}),
    "adm_encoder": ("dse", {"num_head_channels": 16}),
}


def weights(kind):
    return convert.read_state_dict(GOLDEN / f"{FILES[kind][0]}.safetensors")


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key, strict=True)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "adm",
            {
                "channels": 32,
                "channel_mult": (1, 1, 2),
                "num_res_blocks": 1,
                "attention_factors": (4,),
                "use_scale_shift_norm": True,
                "resblock_updown": True,
                "conv_resample": True,
                "num_classes": None,
                "out_channels": 6,
            },
        ),
        (
            "ddpm",
            {
                "channels": 32,
                "channel_mult": (1, 2, 1),
                "num_res_blocks": 1,
                "attention_resolutions": (16,),
                "image_size": 32,
                "resamp_with_conv": True,
                "out_channels": 3,
            },
        ),
        (
            "adm_encoder",
            {
                "channels": 32,
                "channel_mult": (1, 2, 1),
                "num_res_blocks": 1,
                "attention_factors": (2,),
                "use_scale_shift_norm": True,
                "resblock_updown": True,
                "conv_resample": True,
                "num_classes": None,
                "out_channels": 2,
                "pool": "attention",
                "image_size": 32,
            },
        ),
    ],
)
def test_published_files_tell_their_architecture(kind, fields):
    known = {"image_size": 32} if kind == "ddpm" else {}
    assert convert.infer_architecture(weights(kind), kind, **known) == fields


ADM = {"channels": 32, "num_head_channels": 16}
ENCODER = {**ADM, "out_channels": 7}
ARCHITECTURES = [
    ADMUNet(**ADM, channel_mult=(1, 2), num_res_blocks=2, attention_factors=(1, 2)),
    ADMUNet(**ADM, channel_mult=(2, 2), attention_factors=(), use_scale_shift_norm=False),
    ADMUNet(
        **ADM,
        channel_mult=(1, 1, 1),
        num_res_blocks=3,
        attention_factors=(),
        resblock_updown=False,
        num_classes=4,
    ),
    ADMUNet(
        **ADM,
        channel_mult=(1, 2),
        attention_factors=(2,),
        resblock_updown=False,
        conv_resample=False,
        out_channels=3,
    ),
    ADMUNet(**ADM, channel_mult=(1,), num_res_blocks=2, attention_factors=(1,)),
    ADMEncoder(
        **ENCODER, channel_mult=(1, 2, 2), num_res_blocks=2, attention_factors=(2,), image_size=8
    ),
    ADMEncoder(**ENCODER, channel_mult=(1, 2), attention_factors=(2,), pool="adaptive"),
    DDPMUNet(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(256, 128)),
    DDPMUNet(channels=32, channel_mult=(1, 2), attention_resolutions=(), resamp_with_conv=False),
]


def kind_of(net):
    return {ADMUNet: "adm", ADMEncoder: "adm_encoder", DDPMUNet: "ddpm"}[type(net)]


def shapes_of(net):
    kind, labels = kind_of(net), {}
    if getattr(net, "num_classes", None):
        labels = {"y": jnp.zeros((1,), jnp.int32)}
    x = jax.ShapeDtypeStruct((1, *2 * (getattr(net, "image_size", 8),), 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x, 0, **labels)
    return helpers.published_shapes(params, kind)


@pytest.mark.parametrize("net", ARCHITECTURES, ids=range(len(ARCHITECTURES)))
def test_any_architecture_goes_in_and_out_unchanged(net):
    kind, generator = kind_of(net), np.random.default_rng(0)
    shapes = shapes_of(net)
    state_dict = {k: generator.random(s, dtype=np.float32) for k, s in shapes.items()}
    for field, value in convert.infer_architecture(state_dict, kind).items():
        assert getattr(net, field) == value, field
    _, params = convert.from_state_dict(state_dict, kind, **({} if kind == "ddpm" else ADM))
    assert_same(convert.to_state_dict(params, kind), state_dict)
    assert_same(convert.to_state_dict(params["params"], kind), state_dict)


def test_undecided_encoder_asks_for_num_res_blocks():
    net = ADMEncoder(**ENCODER, channel_mult=(1, 1), num_res_blocks=2, attention_factors=())
    state_dict = {k: np.zeros(s, np.float32) for k, s in shapes_of(net).items()}
    message = "num_res_blocks=2 with 2 levels, num_res_blocks=1 with 3 levels: pass num_res_blocks"
    with pytest.raises(ValueError, match=message):
        convert.infer_architecture(state_dict, "adm_encoder")
    for known in ({"num_res_blocks": 2}, {"image_size": 256}, {"channel_mult": (1, 1)}):
        fields = convert.infer_architecture(state_dict, "adm_encoder", **known)
        assert (fields["num_res_blocks"], fields["image_size"]) == (2, 256)


@pytest.mark.parametrize("kind", list(FILES))
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_saved_file_holds_the_published_weights(tmp_path, kind, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")
    name, arch = FILES[kind]
    _, params = convert.load_torch(GOLDEN / f"{name}.safetensors", kind, **arch)
    convert.save_state_dict(tmp_path / f"w{suffix}", params, kind, prefix="module.")
    assert_same(convert.read_state_dict(tmp_path / f"w{suffix}"), weights(kind))


def test_bfloat16_safetensors(tmp_path):
    tensors = {k: jnp.asarray(v, jnp.bfloat16) for k, v in weights("adm_encoder").items()}
    save_flax(tensors, tmp_path / "w.safetensors")
    _, params = convert.load_torch(tmp_path / "w.safetensors", "adm_encoder", **ADM)
    state_dict = convert.to_state_dict(params, "adm_encoder")
    assert_same(state_dict, {k: np.asarray(v, np.float32) for k, v in tensors.items()})


# What trainers write, rebuilt from the published tensors (the published files are as large again).


def flat_buffer_views(torch, tensors):
    """As the mixed-precision trainer of guided-diffusion does it: views of one flat tensor."""
    flat = torch.cat([v.reshape(-1) for v in tensors.values()])
    offsets = np.cumsum([0, *(v.numel() for v in tensors.values())])
    parts = zip(tensors.items(), offsets[:-1], offsets[1:], strict=True)
    return OrderedDict((k, flat[a:b].view(v.shape)) for (k, v), a, b in parts)


def parameters(torch, tensors):
    return OrderedDict((k, torch.nn.Parameter(v)) for k, v in tensors.items())


def data_parallel(torch, tensors):
    return OrderedDict((f"module.{k}", v) for k, v in tensors.items())


def with_optimizer(torch, tensors):
    old = {k: v + 1 for k, v in tensors.items()}
    return {"step": torch.tensor(5), "state_dict": old, "ema": tensors, "lr": 0.1}


def ddpm_trainer(torch, tensors):
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    return [data_parallel(torch, {k: v + 1 for k, v in tensors.items()}), optimizer, 3, 9, tensors]


@pytest.mark.parametrize(
    "form",
    [flat_buffer_views, parameters, data_parallel, with_optimizer, ddpm_trainer],
)
def test_pt_forms(tmp_path, form):
    torch = pytest.importorskip("torch")
    expected = weights("adm_encoder")
    tensors = {k: torch.from_numpy(v.copy()) for k, v in expected.items()}
    torch.save(form(torch, tensors), tmp_path / "w.pt")
    assert_same(convert.read_state_dict(tmp_path / "w.pt"), expected)


def test_pt_from_a_gpu(tmp_path):
    torch = pytest.importorskip("torch")
    expected = weights("adm_encoder")
    torch.save({k: torch.from_numpy(v.copy()) for k, v in expected.items()}, tmp_path / "cpu.pt")
    # Storages name their device as a string of the pickle.
    with (
        zipfile.ZipFile(tmp_path / "cpu.pt") as old,
        zipfile.ZipFile(tmp_path / "w.pth", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, data)
    assert_same(convert.read_state_dict(tmp_path / "w.pth"), expected)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_file_that_would_execute_code_is_refused(tmp_path, plain_pickle):
    torch = pytest.importorskip("torch")
    content = {"conv_in.weight": torch.zeros(1), "x": Malicious(tmp_path / "executed")}
    if plain_pickle:
        content.pop("conv_in.weight")
        (tmp_path / "w.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt was refused .* could execute code: save only the"):
        convert.load_torch(tmp_path / "w.pt", "ddpm")
    assert not (tmp_path / "executed").exists()


def test_unreadable_files(tmp_path):
    for suffix in (".safetensors", ".pt"):
        if suffix == ".pt":
            pytest.importorskip("torch")
        path = tmp_path / f"w{suffix}"
        with pytest.raises(ValueError, match="there is no file"):
            convert.read_state_dict(path)
        for content in (b"", b"rubbish" * 99, (GOLDEN / "dse.safetensors").read_bytes()[:999]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(str(path))):
                convert.read_state_dict(path)
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"extension '.npz': choose one of .pt, .pth"):
        convert.read_state_dict(tmp_path / "w.npz")


def test_pt_without_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no named tensors"):
        convert.read_state_dict(tmp_path / "w.pt")


def test_pt_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    save(tmp_path / "w.pt", weights("adm"))
    _, params = convert.load_torch(tmp_path / "w.pt", "adm", num_head_channels=16)
    assert_same(convert.to_state_dict(params, "adm"), weights("adm"))
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "executed"), protocol=2))
    with pytest.raises(ValueError, match="could execute code"):
        convert.load_torch(tmp_path / "w.pt", "adm")
    with pytest.raises(ImportError, match=r"install cdsde\[torch\], or write a .safetensors"):
        convert.save_state_dict(tmp_path / "w.pt", params, "adm")


def test_what_only_pytorch_knows_is_left_to_it(tmp_path):
    torch = pytest.importorskip("torch")
    expected = weights("adm_encoder")
    content = {k: torch.from_numpy(v.copy()) for k, v in expected.items()}
    torch.save({"ema": content, "shape": torch.Size([3])}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="torch.Size"):
        convert.read_state_dict(tmp_path / "w.pt", plain=True)
    assert_same(convert.read_state_dict(tmp_path / "w.pt"), expected)


@pytest.mark.parametrize("kind", ["adm", "adm_encoder", "ddpm", "cut_generator"])
def test_an_archive_that_bursts_is_refused(tmp_path, kind, monkeypatch):
    """A pickle of 200 MB in an archive of 200 kB; PyTorch, which would unpack it, is not asked."""
    monkeypatch.setattr(convert, "_read_torch", lambda path: pytest.fail("PyTorch was asked"))
    size = 200 * 2**20
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("w/data.pkl", "w") as f:
            f.write(b"\x80\x02X" + size.to_bytes(4, "little"))
            for _ in range(size // 2**20):
                f.write(bytes(2**20))
            f.write(b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"w\.pt is not a readable .* archive is compressed"):
        convert.load_torch(tmp_path / "w.pt", kind)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # kB


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_memory_holds_the_weights_once(tmp_path, suffix):
    net = ADMUNet(channels=192, channel_mult=(1, 2, 3, 4), attention_factors=(4, 8))
    state = {k: np.ones(s, np.float32) for k, s in shapes_of(net).items()}
    path = tmp_path / f"w{suffix}"
    save(path, state) if suffix == ".pt" else save_numpy(state, path)
    assert path.stat().st_size > 400e6
    reader, read = (
        "from cdsde.weights.torch import convert",
        "convert.load_torch(sys.argv[1], 'adm')",
    )
    assert peak_of(reader, read, path) < 1.3 * path.stat().st_size


def test_every_mismatch_is_named_at_once():
    state_dict = weights("adm")
    del state_dict["middle_block.1.qkv.bias"], state_dict["out.0.weight"]
    state_dict["output_blocks.0.0.extra"] = np.zeros(3)
    state_dict["input_blocks.1.0.in_layers.2.weight"] = np.zeros((32, 16, 3, 3))
    with pytest.raises(ValueError, match="do not fit kind 'adm'") as caught:
        convert.from_state_dict(state_dict, "adm", num_head_channels=16)
    message = str(caught.value)
    assert re.search(r"2 missing \(\S+, \S+\), 1 unexpected \(output_blocks.0.0.extra\)", message)
    assert "middle_block.1.qkv.bias" in message
    assert "out.0.weight" in message
    shapes = r"file (32, 16, 3, 3), network (32, 32, 3, 3)"
    assert f"1 ill-shaped (input_blocks.1.0.in_layers.2.weight: {shapes})" in message
    assert message.endswith("so it is incomplete or not quite kind 'adm'.")


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        ("adm", {"channel_mult": (1, 2, 2)}, "channel_mult=(1, 2, 2) was passed where the file"),
        ("adm", {"use_scale_shift_norm": False}, "use_scale_shift_norm=False was passed"),
        ("adm", {"out_channels": 3}, "out_channels=3 was passed where the file says 6"),
        ("adm_encoder", {"image_size": 64}, "image_size=64 was passed where the file says 32"),
        ("adm_encoder", {"pool": "adaptive"}, "pool=adaptive was passed"),
        ("ddpm", {"attention_resolutions": (8,)}, "attention_resolutions=(8,) was passed"),
        ("ddpm", {"num_res_blocks": 2}, "num_res_blocks=2 was passed where the file says 1"),
    ],
)
def test_wrong_field_is_named(kind, wrong, told):
    arch = {**FILES[kind][1], **wrong}
    with pytest.raises(ValueError, match="; likely wrong: " + re.escape(told)):
        convert.from_state_dict(weights(kind), kind, **arch)


def test_long_lists_are_cut():
    with pytest.raises(ValueError, match=r"\d+ ill-shaped \(.* and \d+ more\); likely wrong"):
        convert.from_state_dict(weights("adm"), "adm", **{**FILES["adm"][1], "channels": 64})


def test_other_kinds_and_fields():
    path = GOLDEN / "dse.safetensors"
    with pytest.raises(ValueError, match=r"dse.safetensors: no key of kind 'adm' begins with"):
        convert.load_torch(path, "adm")
    with pytest.raises(ValueError, match="look like kind 'ddpm'"):
        convert.from_state_dict(weights("ddpm"), "adm_encoder")
    with pytest.raises(ValueError, match="in a.weight; check the file"):
        convert.from_state_dict({"a.weight": np.zeros(1)}, "ddpm")
    with pytest.raises(ValueError, match="unknown kind of weights 'unet': choose from adm, "):
        convert.load_torch(path, "unet")
    with pytest.raises(ValueError, match="'adm_encoder' has no field heads: choose from attention"):
        convert.load_torch(path, "adm_encoder", heads=4)
    with pytest.raises(ValueError, match="32 channels cannot be split with num_head_channels=64"):
        convert.load_torch(path, "adm_encoder")
    truncated = {k: v for k, v in weights("adm").items() if not k.startswith("input_blocks.3.")}
    with pytest.raises(ValueError, match="6 input blocks fit no regular arrangement"):
        convert.from_state_dict(truncated, "adm", num_head_channels=16)


def test_multi_domain_extractor_tells_its_classes():
    entry = json.loads((GOLDEN / "full_size.json").read_text())["cat2dog"]["dse"]
    keys = {k: jax.ShapeDtypeStruct(tuple(v), jnp.float32) for k, v in entry["keys"].items()}
    three = keys | {
        f"I2Iout.2.c_proj.{k}": jax.ShapeDtypeStruct((3, *s), jnp.float32)
        for k, s in (("weight", (512, 1)), ("bias", ()))
    }
    fields = convert.infer_architecture(three, "adm_encoder")
    assert fields == convert.infer_architecture(keys, "adm_encoder") | {"out_channels": 3}
