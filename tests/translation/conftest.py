"""A tiny task with weights, and a folder of pictures of all kinds."""

import pytest
from helpers import random_params
from sampling_helpers import picture

from cdsde import config as config_lib
from cdsde.weights import exported


@pytest.fixture(autouse=True)
def one_device(on_devices):
    on_devices(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(config, stage)`: a file of random weights that fit the config."""
    folder = tmp_path_factory.mktemp("weights")

    def make(config, stage: str, seed: int = 0) -> str:
        path = folder / f"{stage}{config.data.image_size}-{seed}.safetensors"
        if not path.exists():
            exported.save(path, config, stage, random_params(config, stage, seed), {})
        return str(path)

    return make


@pytest.fixture
def task(tiny, trained):
    """`task(method, ...)`: the tiny task, with weights."""

    def make(method: str = "sdedit", **changes):
        config = tiny(method=method, **changes)
        for stage in config_lib.STAGES:
            config.weights[stage] = trained(config, stage)
        return config

    return make


@pytest.fixture
def five(tmp_path):
    """A folder of five pictures of several kinds and sizes, and of things that are none."""
    folder = tmp_path / "five pictures"
    folder.mkdir()
    for number, name in enumerate(["a.png", "b.jpg", "ç 1.png", "d.webp", "e.PNG"]):
        picture(number, (20 + number, 16 + 3 * number)).save(folder / name, lossless=True)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "more").mkdir()
    picture(9).save(folder / "more" / "hidden.png")
    return folder
