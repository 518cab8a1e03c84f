"""PyTorch's files without PyTorch."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from cdsde.networks.features import efficientnet
from cdsde.weights.torch import convert, pickle_reader

GOLDEN = Path(__file__).parents[1] / "golden" / "features"
NET_OF = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
FEATURE_KINDS = ["inception", "efficientnet_lite0", "lpips_alex", "lpips_vgg"]


def saved_forms(torch):
    flat = torch.arange(24, dtype=torch.float32)
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    return OrderedDict(
        view=flat[4:16].view(3, 4).T,
        flat=flat,
        parameter=parameter,
        half=torch.arange(3).half(),
        brain=torch.arange(3).bfloat16(),
        count=torch.tensor(7),
        flags=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_pytorch_writes(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    expected = saved_forms(torch)
    content = {"epoch": 3, "state_dict": expected, "rest": [1.5, "x", None]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    actual = pickle_reader.load(tmp_path / "w.pth")
    assert (actual["epoch"], actual["rest"]) == (3, [1.5, "x", None])
    assert set(actual["state_dict"]) == set(expected)
    for key, value in expected.items():
        array = actual["state_dict"][key]
        assert str(value.dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(array.astype(np.float32), value.detach().float().numpy())
    plain = convert.read_state_dict(tmp_path / "w.pth", plain=True)
    general = convert.read_state_dict(tmp_path / "w.pth")
    for key, value in general.items():
        np.testing.assert_array_equal(plain[key], value, strict=True)


def write(path, content, zipped):
    """A file of PyTorch whose state dict is the pickle `content`, without storages."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
        return
    head = (pickle_reader.LEGACY_MAGIC, pickle_reader.LEGACY_PROTOCOL, {"little_endian": True})
    parts = [pickle.dumps(part, protocol=2) for part in head]
    path.write_bytes(b"".join([*parts, content, pickle.dumps([], protocol=2)]))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", FEATURE_KINDS)
def test_file_that_would_execute_code_is_refused(tmp_path, kind, zipped):
    content = pickle.dumps({"x": Malicious(tmp_path / "executed")}, protocol=2)
    write(tmp_path / "w.pth", content, zipped)
    with pytest.raises(ValueError, match=r"w\.pth was refused .*mkdir.* could execute code: save"):
        convert.load_torch(tmp_path / "w.pth", kind)
    assert not (tmp_path / "executed").exists()


def number(n):
    return f"F{n}\n".encode() if isinstance(n, float) else f"I{n}\n".encode()


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def pickled_tensor(offset, shape, strides):
    """What PyTorch pickles for {"x": a tensor beside its storage of 6 numbers}, told anyhow."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQ"
    layout = number(offset) + numbers(shape) + numbers(strides)
    return b"}Vx\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"tRs."


def write_tensor(path, *layout):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled_tensor(*layout))
        archive.writestr("w/data/0", np.arange(6, dtype=np.float32).tobytes())


@pytest.mark.parametrize(
    "layout",
    [(0, (7,), (1,)), (4, (3,), (1,)), (0, (2, 3), (6, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]
    + [(0, (10**9, 10**9), (0, 0)), (0, (2,), (1, 1)), (0, (2.0,), (1,))],
)
def test_tensors_that_reach_beyond_their_storage(tmp_path, layout):
    write_tensor(tmp_path / "w.pth", 1, (2, 2), (1, 3))
    np.testing.assert_array_equal(pickle_reader.load(tmp_path / "w.pth")["x"], [[1, 4], [2, 5]])
    write_tensor(tmp_path / "w.pth", *layout)
    with pytest.raises(ValueError, match=r"w\.pth is not a readable PyTorch file: "):
        pickle_reader.load(tmp_path / "w.pth")


def test_damaged_files(tmp_path):
    path = tmp_path / "w.pth"
    whole = efficientnet.weights_file().read_bytes()
    write(path, pickle.dumps({}, protocol=2), True)
    small = path.read_bytes()
    for content in (b"", b"rubbish" * 99, whole[:100], whole[:30_000], whole[:-9], small[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            convert.load_torch(path, "efficientnet_lite0")
    write(path, pickle.dumps({"epoch": 3}, protocol=2), False)
    with pytest.raises(ValueError, match="holds no named tensors"):
        convert.load_torch(path, "efficientnet_lite0")
