"""Damaged files: 300 pictures and 300 files of weights are read, or refused in a sentence.

`python -m pytest -m campaign tests/campaign`. The number in a test's name is its seed.
"""

import io
import json
import os
import random
import resource
import shutil
import sys
import time

import numpy as np
import pytest
from helpers import one_sentence
from PIL import Image

from cdsde import load_config
from cdsde.data import decode
from cdsde.weights import adoption, resolve

pytestmark = pytest.mark.campaign
SECONDS, BYTES = 5, 2 << 30
EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
executed: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def listen():
    """Notes what runs a program or calls out; a hook cannot be taken away again."""
    sys.addaudithook(lambda event, _: executed.append(event) if event in EXECUTES else None)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with bits turned, cut off, exchanged, repeated or overwritten."""
    data, where = bytearray(data), draw.randrange(len(data))
    kind = draw.choice(["bits", "head bits", "cut", "swap", "repeat", "zeros", "huge", "empty"])
    if kind == "bits":
        for _ in range(draw.randrange(1, 50)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "head bits":
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(min(len(data), 512))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[where:]
    elif kind == "swap":
        size = min(draw.randrange(1, 64), len(data) // 2)
        data[:size], data[-size:] = data[-size:], data[:size]
    elif kind == "repeat":
        data[where:where] = data[where : where + 1000]
    elif kind == "zeros":
        end = min(len(data), where + 1000)
        data[where:end] = bytes(end - where)
    elif kind == "huge":
        data[where : where + 8] = b"\xff" * 8
    else:
        data.clear()
    return bytes(data)


def answers(read) -> bool:
    """Whether it reads; a refusal is one sentence. Both are quick and take little memory."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    executed.clear()
    try:
        read()
        whole = True
    except (ValueError, OSError) as error:
        assert one_sentence(str(error)), f"{type(error).__name__}: {error}"
        assert not isinstance(error, json.JSONDecodeError), error
        whole = False
    assert time.monotonic() - begin < SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert 1024 * grown < BYTES
    assert not executed
    return whole


FORMATS = {"png": {}, "jpeg": {}, "webp": {}, "gif": {}, "tiff": {}, "bmp": {}, "avif": {}}
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "I;16")


@pytest.mark.parametrize("seed", range(300))
def test_pictures(seed, tmp_path):
    draw = random.Random(seed)
    kind, side = draw.choice(list(FORMATS)), draw.randrange(1, 80)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(pixels)
    if kind in ("png", "tiff"):
        mode = draw.choice(MODES)
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(
            "RGB" if kind == "png" and mode == "CMYK" else mode
        )  # fmt: skip
    stream = io.BytesIO()
    image.save(stream, kind)
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(damaged(stream.getvalue(), draw))
    answers(lambda: decode(path))


PUBLISHED = {
    "edm/ddpmpp_vp.pkl": None,
    "edm/adm_edm_cond.pkl": 2,
    "score_sde/ncsnpp_ve.pth": None,
    "guided_diffusion/ema_0.9999_010000.pt": 1,
    "dit/0050000.pt": 3,
    "diffusers/a_ddpm_root": None,
    "diffusers/a_ddpm_root_old": None,
    "diffusers/c_ncsnpp": None,
}


def damage_one(path, draw):
    """Damages the file, or one file of the folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    chosen = draw.choice(files)
    chosen.write_bytes(damaged(chosen.read_bytes(), draw))


@pytest.mark.parametrize("seed", range(200))
def test_published_networks(seed, golden, tiny, tmp_path):
    draw = random.Random(seed)
    name = draw.choice(list(PUBLISHED))
    path = tmp_path / os.path.basename(name)
    copy = shutil.copytree if (golden / "pixel" / name).is_dir() else shutil.copy
    copy(golden / "pixel" / name, path)
    damage_one(path, draw)
    keys = {"method": "sdedit", "sample__start": 300, "data__image_size": 16}
    config = tiny(**keys, weights__score=str(path), score__label=PUBLISHED[name])

    def read():
        resolve.load(adoption.adopted(config, tmp_path), tmp_path, "score")

    answers(read)


@pytest.mark.parametrize("seed", range(100))
def test_files_of_cdsde(seed, tmp_path):
    draw = random.Random(seed)
    for suffix in ("json", "safetensors"):
        shutil.copy(resolve.shipped_folder() / f"encoder-emoji-64.{suffix}", tmp_path)
    damage_one(tmp_path / f"encoder-emoji-64.{draw.choice(['json', 'safetensors'])}", draw)
    path = tmp_path / "encoder-emoji-64.safetensors"
    config = load_config("twemoji2fluent", {"weights.encoder": str(path)})
    answers(lambda: resolve.load(config, tmp_path, "encoder"))
