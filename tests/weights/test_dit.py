"""Checkpoints of DiT: the network, guidance and the reader equal the published code's numbers."""

import json
import os
import pickle
import shutil
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pixel_vectors import (
    PIXEL,
    at_times,
    check,
    compiled,
    from_weights,
    keys_sha256,
    nhwc,
    read_json,
    recipe_noise,
    recipe_weights,
    save,
    shapes_of,
)
from refusals import refused

from cdsde.diffusion import class_guidance, paths
from cdsde.networks import build, published
from cdsde.networks.dit import DiT, positions
from cdsde.weights.formats import dit
from cdsde.weights.torch import pickle_reader, plain_objects

FOLDER = PIXEL / "dit"
(FILE,) = FOLDER.glob("*.pt")
RECIPE = read_json(FOLDER / "recipe.json")
FULL = read_json(FOLDER / "full_size.json")
NEAR = 5e-6

pytestmark = pytest.mark.usefixtures("exact_products")


def inputs_of(module):
    side = module.input_size
    return jnp.zeros((1, side, side, module.in_channels)), jnp.ones(1), jnp.zeros(1, int)


@pytest.fixture(scope="module")
def opened():
    return dit.read(FILE)


@pytest.fixture(scope="module")
def arrays():
    with np.load(FILE.with_suffix(".npz")) as found:
        return dict(found)


def near(name, found, expected, file=f"{FILE.stem}.npz"):
    check("dit", file, name, found, expected, NEAR)


def test_file(opened, arrays, compile_quickly):
    module, params = DiT(**opened.fields), opened.params
    json.dumps((opened.fields, opened.path))
    assert paths.tables(paths.Path(**opened.path), np.array([0.5])).k == pytest.approx(1)

    def out(x, t, y, params=params):
        return np.concatenate(
            [at_times(module, params, one, [when], y=jnp.array([label]))
             for one, when, label in zip(x, t, y, strict=True)]
        )  # fmt: skip

    x, y, t = (arrays[key] for key in "xyt")
    near("out", out([x[0]] * len(t), t, [y[0]] * len(t)), arrays["out"][:, 0])
    mixed = arrays["t_mixed"]
    near("out_mixed", out(x, mixed, y), arrays["out_mixed"])
    null = [module.num_classes] * len(x)
    near("out_mixed_null_class", out(x, mixed, null), arrays["out_mixed_null_class"])
    assert (module.apply(params, nhwc(x), mixed) == module.apply(
        params, nhwc(x), mixed, jnp.array(null))).all()  # fmt: skip
    raw = pickle_reader.load(FILE, plain_objects.RECORDS, lambda content: content["model"])
    raw = from_weights(module, raw, *inputs_of(module))
    near("out_mixed", out(x, mixed, y, raw), arrays["out_mixed_of_raw_weights"])


def test_guidance_is_the_published_one(opened, arrays, compile_quickly):
    module, x = DiT(**opened.fields), arrays["cfg_x"]
    label, null = arrays["cfg_y"]
    when, scale = arrays["cfg_t"], float(arrays["cfg_scale"])

    def apply(x, t, y):
        return compiled(module)(opened.params, x, t, y=y)

    y = jnp.array([label])
    guided = class_guidance.guided(apply, int(null), scale, channels=3)
    found = np.asarray(guided(nhwc(x[:1]), float(when[0]), y))
    near("cfg_out", found, arrays["cfg_out"][:1])
    # The published second half is the same noise with the rest of the null class.
    rest = np.asarray(apply(nhwc(x[:1]), when[:1].astype("f4"), jnp.array([null])))[..., 3:]
    near("cfg_out", np.concatenate([found[..., :3], rest], -1), arrays["cfg_out"][1:])
    # All channels of four, where the published code leaves the fourth alone.
    four = lambda x, t, y: x * (1 + y.reshape(-1, 1, 1, 1))  # noqa: E731
    ones = jnp.ones((1, 2, 2, 4))
    args = (ones, 0, jnp.array([3]))
    assert (class_guidance.guided(four, 0, 2.0)(*args) == 7).all()
    published = class_guidance.guided(four, 0, 2.0, channels=3)(*args)
    assert published[0, 0, 0].tolist() == [7, 7, 7, 4]


def test_sampling_is_guided_by_the_class(opened, arrays, tiny, compile_quickly):
    """On the linear schedule the network's states are ours, and its output is the noise."""
    config = tiny(method="sdedit", sde__schedule="linear")
    path = {"state": "vp", "output": "eps", "time": {"kind": "levels", "schedule": "linear"}}
    fields = {**opened.fields, "null_class": True}
    label, null = (int(y) for y in arrays["cfg_y"])
    told = published.Description("DiT", fields, path, fields["input_size"], null)
    text = published.to_text(told._replace(channels=fields["in_channels"]))
    config.score.update(arch="published", published=text, label=label)
    config.score.guidance = float(arrays["cfg_scale"])
    x, when = nhwc(arrays["cfg_x"][:1]), int(arrays["cfg_t"][0])
    found = jax.jit(build.score_model(config).apply)(opened.params, x, jnp.int32(when))
    near("cfg_out", found, arrays["cfg_out"][:1, : x.shape[-1]])


@pytest.mark.parametrize("name", RECIPE)
@pytest.mark.slow
def test_recipes(name, compile_quickly):
    entry = RECIPE[name]
    fields = dit.fields_of(entry, FOLDER / "recipe.json")
    module = DiT(**fields)
    shapes = shapes_of(module, *inputs_of(module))
    assert (len(shapes), keys_sha256(shapes)) == (entry["keys"], entry["keys_sha256"])

    def fixed(key, n):
        side = fields["input_size"] // fields["patch_size"]
        return positions(side, fields["hidden_size"])[None] if key == "pos_embed" else None

    state = recipe_weights(shapes, entry["weights_seed"], fixed)
    found = dit.infer(state, fields["num_classes"])
    assert found == {key: value for key, value in fields.items() if key != "num_heads"}
    params = from_weights(module, state, *inputs_of(module))
    x, y = recipe_noise(entry["x"]), jnp.array(entry["y"])
    found = compiled(module)(params, nhwc(x), jnp.array(entry["t"], jnp.float32), y=y)
    with np.load(FOLDER / "recipe.npz") as arrays:
        near(name, found, arrays[name], "recipe.npz")


@pytest.mark.parametrize("name", FULL["full"])
def test_full_size_trees(name):
    size, side = name.split(" at ")
    depth, width, patch, heads = FULL["named_models (depth, hidden, patch, heads)"][size]
    fields = {"depth": depth, "hidden_size": width, "patch_size": patch, "num_heads": heads}
    module = DiT(input_size=int(side) // 8, **fields)
    shapes = shapes_of(module, *inputs_of(module))
    expected = FULL["full"][name]
    assert (len(shapes), keys_sha256(shapes)) == (expected["keys"], expected["keys_sha256"])


def test_heads_of_every_published_size():
    for name, (depth, width, _, heads) in FULL[
        "named_models (depth, hidden, patch, heads)"
    ].items():
        fields = {"depth": depth, "hidden_size": width}
        assert dit._heads(name, {"depth": 0, "hidden_size": 0}) == heads
        assert dit._heads(None, fields) == heads


def weights(side=4, width=16, depth=1):
    module = DiT(input_size=side, patch_size=1, in_channels=3, hidden_size=width, depth=depth,
                 num_heads=2, num_classes=4)  # fmt: skip
    return recipe_weights(shapes_of(module, *inputs_of(module)), 0)


CONFIG = {"input_size": 4, "patch_size": 1, "in_channels": 3, "hidden_size": 16, "depth": 1}
CONFIG |= {"num_heads": 2, "num_classes": 4}


def test_bare_state_dicts(tmp_path):
    save(tmp_path / "w.pt", weights())
    with pytest.raises(ValueError, match=r"w\.pt: its weights do not tell the number of heads"):
        dit.read(tmp_path / "w.pt")
    found = dit.read(tmp_path / "w.pt", {"constructor": CONFIG})
    assert found.fields["num_heads"] == 2
    (tmp_path / "w.config.json").write_text(json.dumps({"constructor": {**CONFIG, "depth": 2}}))
    with pytest.raises(ValueError, match=r"w\.pt contradicts its weights: depth is 2, in the weig"):
        dit.read(tmp_path / "w.pt")
    (tmp_path / "w.config.json").write_text(json.dumps({"constructor": {**CONFIG, "qk_norm": 1}}))
    with pytest.raises(ValueError, match=r"w\.config\.json sets qk_norm to 1"):
        dit.read(tmp_path / "w.pt")


def of_trainer(path, state, **arguments):
    """A file as a trainer writes it, with argparse's arguments."""
    save(path, {"model": state, "ema": state, "args": {"fields": arguments}})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    told = b"".join(b"V%s\nV%s\ns" % (k.encode(), v.encode()) for k, v in arguments.items())
    start = parts["w/data.pkl"].index(b"Vargs\n") + len(b"Vargs\n")
    record = b"cargparse\nNamespace\n)\x81}" + told + b"bs."
    parts["w/data.pkl"] = b"\x80\x02" + parts["w/data.pkl"][:start] + record
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": "SiT-XL/2", "path_type": "Linear", "prediction": "velocity"},
         "the model 'SiT-XL/2', path_type 'Linear', prediction 'velocity'"),
        ({"model": "MDT-S/2"}, "the model 'MDT-S/2'"),
        ({"model": "DiT-S/2", "prediction": "velocity"}, "prediction 'velocity'"),
        (None, "the model 'SiT-XL-2-256x256'"),
        ({"model": "DiT-S/2"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_sit_and_others_with_the_names_of_dit_are_refused(tmp_path, arguments, told):
    if arguments is None:  # a bare state dict, of which the name alone tells
        save(path := tmp_path / "SiT-XL-2-256x256.pt", weights())
    else:
        of_trainer(path := tmp_path / "w.pt", weights(), **arguments)
    if told is None:
        assert dit.read(path, {"constructor": CONFIG}).fields["num_heads"] == 2
        return
    with pytest.raises(ValueError, match=f"it is no DiT but has {told}; networks of SiT") as error:
        dit.read(path, {"constructor": CONFIG})
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_files_without_an_average_or_with_other_tensors(tmp_path):
    path = tmp_path / "w.pt"
    save(path, {"model": weights()})
    with pytest.raises(ValueError, match=r"w\.pt has no averaged weights"):
        dit.read(path)
    state = weights()
    state["extra.weight"] = state.pop("blocks.0.attn.proj.weight")
    save(path, state)
    with pytest.raises(ValueError, match=r"w\.pt: 1 missing .*attn\.proj.* unexpected \(extra"):
        dit.read(path, {"constructor": CONFIG})
    for content in ({"a": "b"}, {}, ["x"], {"x": np.zeros(3, "f4")}):
        save(path, content)
        with pytest.raises(ValueError, match=r"w\.pt:? (it )?is no "):
            dit.read(path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("/nonexistent/executed",)


def archive_of(path, pickled, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        for name, data in entries.items():
            archive.writestr(f"w/{name}", data)


def compress(path):
    save(path, {"x": np.zeros(10, "f4")})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/data/0", b"\0" * 10**7)


def huge_header(path):
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI1000000000\ntQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n(I1000000000\nt(I1\nttR"
    archive_of(path, b"}Vpos_embed\n" + tensor + b"s.", **{"data/0": b"\0" * 64})


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save(path, weights(), byteorder=b"big"),
        lambda path: archive_of(path, pickle.dumps(Malicious(), protocol=2)),
        lambda path: archive_of(path, b"cargparse\nNamespace\n)\x81cos\nsystem\nb."),
        lambda path: archive_of(path, b"Nr\xff\xff\xff\x7f."),  # a memo of 2³¹ entries
        lambda path: archive_of(path, b"\x96" + b"\xff" * 7 + b"\x00."),  # so many bytes
        lambda path: path.write_bytes(FILE.read_bytes()[:-1000]),
        lambda path: path.write_bytes(FILE.read_bytes()[1000:]),
        lambda path: path.write_bytes(b""),
        compress,
        huge_header,
    ],
    ids="big code record memo bytes cut beheaded empty compressed header".split(),
)
def test_hostile_files_are_refused_at_once(tmp_path, write):
    path = tmp_path / "w.pt"
    write(path)
    refused(lambda path: dit.read(path, {"constructor": CONFIG}), path, r"w\.pt", peak=10 * 2**20)


def test_a_list_of_lists_of_lists_is_refused(tmp_path):
    """40 lists of ten times the next: a few hundred bytes that would take forever to go through."""
    lists = b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(40))
    archive_of(tmp_path / "w.pt", b"(]q\x00" + lists + b"t.")
    refused(pickle_reader.load, tmp_path / "w.pt", "mentions the same things too often")


def test_memory_while_reading(tmp_path):
    """At most 1.3 times the file, and the average alone of a trainer's file.

    On CPUs JAX's arrays are made of NumPy's memory, which is what is counted.
    """
    state = weights(width=256, depth=4)
    config = {"constructor": {**CONFIG, "hidden_size": 256, "depth": 4}}
    for content, share in ((state, 1.3), ({"model": state, "ema": state}, 0.65)):
        save(tmp_path / "w.pt", content)
        tracemalloc.start()
        found = dit.read(tmp_path / "w.pt", config)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.fields["depth"] == 4
        assert peak < share * (tmp_path / "w.pt").stat().st_size


def test_copy_of_the_vectors_without_configuration_names_the_file_to_write(tmp_path):
    shutil.copy(FILE, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"NAME\.config\.json"):
        dit.read(tmp_path / "x.pt")
