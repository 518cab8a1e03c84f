"""EDM's snapshots: what is no network of EDM is refused, in a sentence, at once."""

import struct
import subprocess
import sys
from pathlib import Path

import edm_files
import numpy as np
import pytest
import refusals
from edm_files import Call, Raw, pickled

from cdsde.weights.formats import edm
from cdsde.weights.torch import opcodes, pickle_reader

GOLDEN = Path(__file__).parents[1] / "golden" / "pixel" / "edm"
ARGUMENTS = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 0}
ARGUMENTS |= {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": []}
GIGA = 10**9
EXECUTE = Call("builtins.exec", ("raise RuntimeError('code of the file was executed')",))


@pytest.fixture(scope="module")
def weights():
    return edm_files.recipe_weights("SongUNet", ARGUMENTS, 1)


def content(weights, arguments=None, **changes):
    state_dict = weights | changes.pop("tensors", {})
    network = changes.pop("network", "SongUNet")
    kind = changes.pop("kind", "EDMPrecond")
    return edm_files.snapshot(kind, network, arguments or ARGUMENTS, state_dict, **changes)


def refused(path, match):
    return refusals.refused(edm.read, path, match, peak=2**25 + 3 * path.stat().st_size)


@pytest.mark.parametrize("name", ["canary", "canary_nested"])
def test_files_that_would_execute_code(name):
    message = refused(GOLDEN / f"{name}.pkl", r"was refused .*(builtins|__builtin__)\.exec")
    assert "could execute code" in message


def nested(tail, **changes):
    """A tensor whose bytes are a pickle of its own; `tail` is what follows its header."""
    data = edm_files.storage_file(np.zeros(4, np.float32), **changes)
    data = data if tail is None else data[: data.index(b"(X\x07\x00\x00\x00storage")] + tail
    return edm_files.tensor(Call("torch.storage._load_from_bytes", (data,)), 0, (4,), (1,))


def twice(value, times):
    """A tuple of a tuple of ..., each with its content twice: small, but long to walk through."""
    return Raw(pickled(value) + b"q\x00h\x00\x86" * times)


BOMBS = {
    "elements in a storage": nested(None, size=GIGA, count=GIGA),
    "elements that follow": nested(None, count=GIGA),
    "negative count": nested(None, size=-1, count=-1),
    "code in a tensor's bytes": nested(pickled(EXECUTE) + b"."),
    "another endianness": nested(None, little=False),
    "view of a storage": nested(None, view=("v", 2, 4)),
    "bytes in bytes": nested(b"\x8e" + struct.pack("<Q", 10**12) + b"x"),
    "memo of a tensor's bytes": nested(b"Nr" + struct.pack("<I", 2**32 - 1) + b"."),
    "shape": edm_files.tensor(
        Call("torch.storage._load_from_bytes", (edm_files.storage_file(np.zeros(4, "f4")),)),
        *(0, (GIGA, GIGA), (0, 0)),
    ),
    "frame": Raw(b"\x95" + struct.pack("<Q", 2**62) + b"N"),
    "string": Raw(b"\x8d" + struct.pack("<Q", 10**12) + b"x"),
    "array of bytes": Raw(b"\x96" + struct.pack("<Q", 10**12) + b"x"),
    "long number": Raw(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x"),
    "memo": Raw(b"Nr" + struct.pack("<I", 2**32 - 1)),
    "key that takes for ever to hash": Raw(b"}" + twice(1, 60).code + b"Ns"),
    "the same in a set": Raw(b"\x8f(" + twice(1, 60).code + b"\x90"),
    "the same in an OrderedDict": Call("collections.OrderedDict", ([(twice(1, 60), 1)],)),
    "arguments of a scalar": Call("numpy.dtype", (twice(1, 60),)),
    "encoding": Call("_codecs.encode", ("x", twice(1, 60))),
    "long text as bytes": Call("_codecs.encode", ("x" * 65, "latin1")),
    "version": Call(
        "torch_utils.persistence._reconstruct_persistent_obj",
        ({"type": "class", "version": twice(1, 60), "class_name": "Loss", "state": {}},),
    ),
    "class": edm_files.persistent("x" * 10**6, {}),
    "long number that is there": Raw(b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5),
    "axes": edm_files.tensor(
        Call("torch.storage._load_from_bytes", (edm_files.storage_file(np.zeros(4, "f4")),)),
        *(0, [0] * 17, [0] * 17),
    ),
    "lists in lists": Raw(b"]" * 10**4 + b"a" * (10**4 - 1)),
    "extension": Raw(b"\x82\x01"),
    "reference to outside": Raw(b"Vfile\nQ"),
    "state of a list": Raw(b"]}b"),
    "empty stack": Raw(b"0" * 9),
    "name": Call("os.system", ("true",)),
    "method": Call("collections.OrderedDict.fromkeys", (["a"],)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    path = tmp_path / "a.pkl"
    edm_files.write(path, {"loss_fn": BOMBS[name], "ema": None})
    refused(path, "a.pkl (was refused|is not a readable network snapshot of EDM: )")


def test_pickles_of_too_many_operations(tmp_path):
    edm_files.write(tmp_path / "a.pkl", {"loss_fn": Raw(b"]" + b"2" * 2 * 10**6)})
    refused(tmp_path / "a.pkl", r"a\.pkl is not .*more than 500,000 operations")


def test_a_storage_that_is_mentioned_often_is_built_once(tmp_path):
    data = pickled(edm_files.storage_file(np.zeros(4, np.float32)))
    call = b"ctorch.storage\n_load_from_bytes\n"
    made = call + b"q\x020" + data + b"\x85q\x030](" + b"h\x02h\x03R" * 10**5 + b"e"
    edm_files.write(tmp_path / "a.pkl", {"loss_fn": Raw(made)})
    refused(tmp_path / "a.pkl", "more than 500,000 operations")
    few = made.replace(b"h\x02h\x03R" * 10**5, b"h\x02h\x03R" * 10**4)
    edm_files.write(tmp_path / "a.pkl", {"ema": Raw(few)})
    refused(tmp_path / "a.pkl", "no network under 'ema'")
    edm_files.write(tmp_path / "a.pkl", {"loss_fn": [nested(None) for _ in range(10**4)]})
    refused(tmp_path / "a.pkl", "more than 500,000 operations")


def test_a_view_of_a_view_cannot_reach_beyond_the_bytes():
    """A view that repeats the last number would else pass for a storage of as many."""
    held = pickle_reader.Storages(opcodes.Work()).find
    storage = held(edm_files.storage_file(np.arange(4, dtype=np.float32)))
    last = pickle_reader._rebuild_tensor(storage, 3, (4,), (0,))
    np.testing.assert_array_equal(last, [3, 3, 3, 3])
    with pytest.raises(ValueError, match="a tensor has no storage"):
        pickle_reader._rebuild_tensor(last, 0, (4,), (1,))


def test_truncated_and_damaged_files(tmp_path):
    whole = (GOLDEN / f"{a_file()}.pkl").read_bytes()
    path = tmp_path / "a.pkl"
    size = len(whole)
    for end in (0, 1, 2, 11, 100, 2000, size // 3, size // 2, size - 1000, size - 1):
        path.write_bytes(whole[:end])
        refused(path, "is not a readable network snapshot of EDM: ")
    for rubbish in (b"rubbish" * 99, b"PK\3\4" + bytes(99), b"\x80\x04N.", b"\x80\x04]."):
        path.write_bytes(rubbish)
        refused(path, "is not a readable network snapshot of EDM: ")
    with pytest.raises(ValueError, match=r"there is no file .*b\.pkl: check"):
        edm.read(tmp_path / "b.pkl")


def a_file():
    return min(path.stem for path in GOLDEN.glob("*.pkl") if not path.stem.startswith("canary"))


def test_any_changed_byte_is_a_number_or_is_refused(tmp_path):
    """A file of another sort must end in a sentence, whatever is wrong with it."""
    whole, path = bytearray((GOLDEN / f"{a_file()}.pkl").read_bytes()), tmp_path / "a.pkl"
    generator = np.random.default_rng(0)
    for _ in range(25):
        changed = whole.copy()
        for place in generator.integers(0, 4000, 2):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        try:
            edm.read(path)
        except ValueError as error:
            assert str(path) in str(error)


def modules_in_modules(times):
    """A module with two parts that are the same module with two parts that are ..."""
    inner = edm_files.module({}, "Part")
    made = pickled(inner)
    for _ in range(times):
        parts = b"}(" + pickled("a") + made + b"q\x01" + pickled("b") + b"h\x01u"
        state = {"_parameters": {}, "_buffers": {}, "_modules": Raw(parts)}
        made = pickled(edm_files.persistent("Part", state))
    return Raw(made)


WRONG = {
    "blocks": ({"num_blocks": GIGA}, "do not make 2 levels of 1000000000 blocks"),
    "channels": ({"model_channels": GIGA}, r"map_layer0.weight has the shape \(32, 8\)"),
    "levels": ({"channel_mult": [1] * 16}, "do not make 16 levels"),
    "no levels": ({"channel_mult": []}, "do not make 0 levels"),
    "long list": ({"channel_mult": [1] * 99}, "argument channel_mult="),
    "type": ({"num_blocks": "1"}, "argument num_blocks=1"),
    "dropout of labels": ({"label_dropout": "1"}, "argument label_dropout=1"),
    "zero": ({"channel_mult": [1, 0]}, "argument channel_mult="),
    "negative": ({"num_blocks": -1}, "argument num_blocks=-1"),
    "classes": ({"label_dim": 7}, "missing .*map_label.weight"),
    "inputs": ({"in_channels": 4}, r"enc\.8x8_conv\.weight: file \(8, 3, 3, 3\)"),
    "unknown": ({"shiny": 1}, "the argument shiny, which is not known"),
    "choice": ({"encoder_type": "other"}, "encoder is 'other': choose"),
    "filter": ({"resample_filter": [1, 3, 3, 1]}, "the filter .*resample_filter is not that"),
    "odd filter": ({"resample_filter": [1, 2, 1]}, "argument resample_filter="),
    "empty filter": ({"resample_filter": [0, 0]}, "argument resample_filter="),
    "width": ({"model_channels": 8, "channel_mult": [1, 3]}, "ill-shaped|missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_do_not_fit_the_weights(tmp_path, name, weights):
    changes, match = WRONG[name]
    edm_files.write(tmp_path / "a.pkl", content(weights, ARGUMENTS | changes))
    refused(tmp_path / "a.pkl", match)


def snapshot_with(modules):
    """A snapshot whose network has these modules and no arguments."""
    inner = edm_files.module({}, "SongUNet", _init_kwargs={}, _modules=modules)
    return {"ema": edm_files.module({}, "EDMPrecond", _modules={"model": inner})}


def test_modules_of_endless_names_and_arguments(tmp_path, weights):
    def check(match, inside):
        edm_files.write(tmp_path / "a.pkl", inside)
        refused(tmp_path / "a.pkl", match)

    check("mentions the same things too often", snapshot_with({"a": modules_in_modules(25)}))
    check("stands in several places", snapshot_with({"a": modules_in_modules(1)}))
    check("a key is longer", snapshot_with({"x" * 10**6: edm_files.module({}, "Part")}))
    endless = {**ARGUMENTS, "num_blocks": twice(1, 60)}
    check("mentions the same things too often", content(weights, endless))
    check("more than 100 arguments", content(weights, {f"x{n}": 1 for n in range(101)}))


def test_parameters_of_many_names_take_no_more_memory_than_their_file(tmp_path):
    kernel = edm_files.tensor(
        Call("torch.storage._load_from_bytes", (edm_files.storage_file(np.zeros(2**18, "f4")),)),
        *(0, (2**18,), (1,)),
    )
    again = b"".join(pickled(f"{n}") + b"h\x02" for n in range(1000))
    shared = Raw(b"}(" + pickled("x") + pickled(kernel) + b"q\x02" + again + b"u")
    part = edm_files.persistent("Part", {"_parameters": shared, "_buffers": {}, "_modules": {}})
    edm_files.write(tmp_path / "a.pkl", snapshot_with({"a": part}))
    refused(tmp_path / "a.pkl", "more than 8 times as large")


@pytest.mark.slow
def test_other_contents(tmp_path, weights):
    def check(match, inside):
        edm_files.write(tmp_path / "a.pkl", inside)
        refused(tmp_path / "a.pkl", match)

    check("no network under 'ema', only .*G_ema", {"G_ema": content(weights)["ema"]})
    check("its 'ema' is a Other; known are EDMPrecond", content(weights, kind="Other"))
    check("its network is a Generator; known are SongUNet", content(weights, network="Generator"))
    check("no table u of noise levels", content(weights, kind="iDDPMPrecond"))
    check("has sigma_data=0, which", content(weights, sigma_data=0))
    rising = {"u": np.arange(9, dtype=np.float32)}
    check("no table u", content(weights, kind="iDDPMPrecond", tensors=rising))
    check("NaN or infinite", content(weights, tensors={"map_layer0.bias": np.full(32, np.nan)}))
    check(
        "1 ill-shaped .*map_layer1.bias", content(weights, tensors={"map_layer1.bias": rising["u"]})
    )
    check("unexpected .*surplus", content(weights, tensors={"surplus.weight": rising["u"]}))
    without = {k: v for k, v in weights.items() if k != "map_layer1.bias"}
    check("1 missing .*map_layer1.bias", content(without))
    check(
        "arguments without names",
        {
            "ema": edm_files.module(
                {},
                "EDMPrecond",
                _modules={
                    "model": edm_files.module({}, "SongUNet", _init_args=(1,), _init_kwargs={})
                },
            )
        },
    )
    about = Call(
        "torch_utils.persistence._reconstruct_persistent_obj",
        ({"type": "class", "version": 7, "class_name": "EDMPrecond", "state": {}},),
    )
    check("version 7 of persistence, not 6", {"ema": about})


def test_what_a_file_says_is_told(tmp_path, weights):
    edm_files.write(tmp_path / "a.pkl", content(weights, sigma_data=0.25))
    opened = edm.read(tmp_path / "a.pkl")
    assert opened.arch == "SongUNet" and opened.fields["attention_resolutions"] == []
    time = {"kind": "log_sigma", "factor": 0.25}
    assert opened.path == {
        "state": "edm",
        "output": "F",
        "time": time,
        "data": [-1, 1],
        "sigma_data": 0.25,
        "sigma_min": None,
        "sigma_max": None,
    }
    np.testing.assert_array_equal(
        opened.params["params"]["map_layer0"]["kernel"].T, weights["map_layer0.weight"]
    )


@pytest.mark.slow
def test_memory_of_a_large_file(tmp_path, weights):
    arguments = {**ARGUMENTS, "model_channels": 256, "channel_mult": [2, 2], "num_blocks": 2}
    shapes = edm_files.shapes("SongUNet", arguments)
    state_dict = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    state_dict |= edm.filters("SongUNet", edm.fields_of("SongUNet", arguments))
    edm_files.write(tmp_path / "large.pkl", content(state_dict, arguments))
    edm_files.write(
        tmp_path / "small.pkl", content(edm_files.recipe_weights("SongUNet", ARGUMENTS, 1))
    )
    size = (tmp_path / "large.pkl").stat().st_size
    assert size > 3e8
    code = f"""
import resource
from cdsde.weights.formats import edm
from cdsde.weights.torch import opcodes, pickle_reader
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
edm.read({str(tmp_path / "small.pkl")!r})
before = peak()
opened = edm.read({str(tmp_path / "large.pkl")!r})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.3 * size
