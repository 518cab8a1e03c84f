"""Small PyTorch files that would take hours or all memory are refused in a sentence, at once."""

import functools
import pickle
import struct
import zipfile

import pytest
from refusals import refused

from cdsde.weights.formats import registry
from cdsde.weights.torch import convert, opcodes, pickle_reader, plain_objects

SEARCHED = 2**17  # places of a dict of 80 000 keys
OBJECTS = {**plain_objects.NUMPY_SCALARS, **plain_objects.RECORDS}
READERS = {
    "load": functools.partial(pickle_reader.load, more=OBJECTS),
    "format": lambda path: registry.format_of(str(path)),
    "state dict": functools.partial(convert.read_state_dict, plain=True),
}


def text(value: str | bytes) -> bytes:
    value = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def memo(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def int32(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def long4(size: int) -> bytes:
    return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


def list_of(items) -> bytes:
    return b"](" + b"".join(items) + b"e"


def twice(times: int) -> bytes:
    """A pair of a pair of ..., each with its content twice: small, but endless to print."""
    return b"N" + b"q\x00h\x00\x86" * times


def named(name: str) -> bytes:
    module, attribute = name.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode()


def storage(key: bytes = text("0"), size: bytes = int32(6), kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + named(f"torch.{kind}") + key + text("cpu") + size + b"tQ"


def tensor(shape: bytes = b"J\6\0\0\0\x85", strides: bytes = b"K\1\x85", of: bytes = b"") -> bytes:
    of = of or storage()
    return named("torch._utils._rebuild_tensor_v2") + b"(" + of + b"K\0" + shape + strides + b"tR"


def calls(name: str, arguments: bytes, times: int) -> bytes:
    """A list of what a name makes of the same arguments, many times; they must not use memo 0."""
    first = named(name) + memo(0) + b"0" + arguments + memo(1) + b"0"
    return first + list_of([get(0) + get(1) + b"R"] * times)


def pairs(count: int) -> bytes:
    return list_of(int32(n) + b"N\x86" for n in range(count))


@functools.cache
def searched_for_long() -> bytes:
    """A dict whose keys lie where Python looks for one more key, which is looked for often."""
    key = perturbed = SEARCHED * 5 + 7
    place, places = key % SEARCHED, {}
    while len(places) < 80_000:
        places[place] = None
        perturbed >>= 5
        place = (place * 5 + perturbed + 1) % SEARCHED
    filled = b"}(" + b"".join(int32(n) + b"N" for n in places) + b"u"
    return filled + (int32(key) + b"Ns") * 30_000


PICKLES = {
    "long number": long4(100_000),
    "long number of a byte's length": b"\x8a\xff" + b"\x7f" * 255,
    "long number announced": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
    "long number of negative length": b"\x8b" + struct.pack("<i", -1) + b"x",
    "number in text": b"I" + b"9" * 4000 + b"\n",
    "long in text": b"L" + b"9" * 4000 + b"L\n",
    "longer in text": b"I" + b"9" * 10**6 + b"\n",
    "place in the memo in text": b"Np" + b"9" * 4000 + b"\n",
    "memo in text": b"Ng" + b"9" * 4000 + b"\n",
    "axes of one long number": long4(4000) + memo(9) + b"0" + tensor(list_of([get(9)] * 20_000)),
    "axes of a number": tensor(list_of([int32(2**31 - 1)] * 100_000)),
    "size of a storage": tensor(of=storage(size=long4(4000))),
    "strides": tensor(strides=long4(17) + b"\x85"),
    "many shapes": list_of([int32(1)] * 100_000)
    + memo(8)
    + b"0"
    + list_of([tensor(get(8), get(8))] * 2000),
    "text as bytes": text("x" * 10**6)
    + memo(8)
    + b"0"
    + calls("_codecs.encode", b"(" + get(8) + text("latin1") + b"t", 600),
    "pairs": pairs(60_000)
    + memo(8)
    + b"0"
    + calls("collections.OrderedDict", get(8) + b"\x85", 200),
    "text as pairs": text("ab" * 10**6)
    + memo(8)
    + b"0"
    + calls("collections.OrderedDict", get(8) + b"\x85", 200),
    "arguments": calls("numpy.dtype", b"(" + text("f8") + b"N" * 10**5 + b"t", 10**4),
    "calls": calls("argparse.Namespace", b")", 150_000),
    "sets": list_of([b"\x8f"] * 400_000),
    "frozen sets": list_of([b"(\x91"] * 300_000),
    "lists": b"]" * 10**6,
    "copies": b"]" + b"2" * 10**6,
    "nested tuples": b"N" + b"\x85" * 400_000,
    "twice": twice(60),
    "name of a storage": tensor(of=storage(key=twice(60))),
    "long name of a storage": tensor(of=storage(key=text("0" * 10**6))),
    "reference": twice(60) + b"Q",
    "long reference": list_of([b"N"] * 10**5) + memo(8) + b"0" + (get(8) + b"Q0") * 10**4,
    "type": named("numpy.dtype") + twice(60) + b"\x85R",
    "encoding": named("_codecs.encode") + text("x") + twice(60) + b"\x86R",
    "in itself": b"]" + memo(0) + get(0) + b"a",
    "long texts": text("x" * 10**6) + memo(0) + b"0" + list_of([get(0)] * 50_000),
    "long key": b"}" + text("x" * 10**6) + b"Ns",
    "number as a key": b"}" + b"\x8a\x09" + b"\x7f" * 9 + b"Ns",
    "keys that collide": searched_for_long(),
    "the same in a set": b"\x8f(" + b"".join(int32(n) for n in range(80_000)) + b"\x90",
    "the same in an OrderedDict": named("collections.OrderedDict") + pairs(60_000) + b"\x85R",
    "places that collide": b"N" + b"".join(memo(n * SEARCHED) for n in range(2000)),
    "long module": b"c" + b"x" * 10**6 + b"\ny\n",
}


def write(path, content: bytes, data: bytes = bytes(24)) -> None:
    """A file of PyTorch's, with a storage "0"; `.pt` an archive and `.pth` of old format."""
    content = b"\x80\x04" + content + b"."
    if path.suffix == ".pt":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", content)
            archive.writestr("w/data/0", data)
        return
    head = (pickle_reader.LEGACY_MAGIC, pickle_reader.LEGACY_PROTOCOL, {"little_endian": True})
    parts = [pickle.dumps(part, protocol=2) for part in head]
    path.write_bytes(b"".join([*parts, content, pickle.dumps([], protocol=2)]))


@pytest.mark.parametrize("bomb", PICKLES)
def test_pickles_that_would_never_end_are_refused(tmp_path, bomb):
    path = tmp_path / "w.pt"
    write(path, b"}" + text("x") + PICKLES[bomb] + b"s")
    match = r"was refused because|is not a readable PyTorch file: .*; get the file again\.$"
    refused(READERS["load"], path, match, peak=6e7)


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_them(tmp_path, reader, name):
    for bomb in ("long number", "text as bytes", "pairs", "twice"):
        write(tmp_path / name, b"}" + text("x") + PICKLES[bomb] + b"s")
        refused(READERS[reader], tmp_path / name, r"w\.pth? (was refused|is not a read)", peak=6e7)


def mentions(times: int, data: bytes) -> bytes:
    """A state dict of one tensor of half precision under many names."""
    size = int32(len(data) // 2)
    made = tensor(size + b"\x85", of=storage(size=size, kind="HalfStorage"))
    return b"}(" + text("0") + made + memo(0) + b"".join(
        text(str(n)) + get(0) for n in range(1, times)
    ) + b"u"  # fmt: skip


def test_tensors_of_many_names_take_no_more_memory_than_their_file(tmp_path):
    path, data = tmp_path / "w.pt", bytes(2**20)
    write(path, mentions(1000, data), data)
    refused(READERS["state dict"], path, "more than 8 times as large", peak=6e7)
    write(path, mentions(2, data), data)
    assert [x.shape for x in READERS["state dict"](path).values()] == [(2**19,)] * 2


def test_archives_of_too_many_parts(tmp_path):
    path, count = tmp_path / "w.pt", 100_000
    write(path, b"}")
    whole = path.read_bytes()
    begin = whole.index(b"PK\1\2")
    part = whole[begin : whole.index(b"PK\1\2", begin + 1)]
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, len(part) * count, begin, 0
    )
    path.write_bytes(whole[:begin] + part * count + end)
    refused(READERS["load"], path, "its archive lists too many parts")


def test_a_large_mark_of_the_byte_order(tmp_path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"}.")
        archive.writestr("w/byteorder", b"little" * 10**7)
    refused(READERS["load"], path, "big-endian")


def test_numbers_as_keys_and_long_texts_of_trainers_are_read(tmp_path):
    content = {
        "state": {n: {"step": n} for n in range(3000)},
        140234567890123: 2**63 - 1,
        "config": "x" * 10**6,
        "same": [[1.5, None]] * 2,
        "pair": [{"x": b"y"}, True],
        0.5: -(2**100),
    }
    for protocol in range(5):
        write(tmp_path / "w.pt", pickle.dumps(content, protocol)[2 * (protocol > 1) : -1])
        assert READERS["load"](tmp_path / "w.pt") == content


def test_a_thousand_tensors_cost_a_tenth_of_what_is_allowed(tmp_path):
    one = tensor()
    names = [f"module.input_blocks.{n}.0.in_layers.2.weight" for n in range(1000)]
    content = b"}(" + b"".join(text(name) + one for name in names) + b"u"
    write(tmp_path / "w.pt", content)
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        work = opcodes.Work()
        with archive.open("w/data.pkl") as data:
            assert len(pickle_reader.Unpickler(data, work).load()) == 1000
    assert opcodes.WORK - work.left < opcodes.WORK / 10
