"""The page under 20 visitors at a time, of whom every other one leaves half-way.

`python -m pytest -m campaign tests/campaign`.
"""

import random
import resource
import threading
import time

import numpy as np
import pytest
from helpers import FOLDER, TINY, free_port, with_random_weights
from PIL import Image

from cdsde import load_config

pytestmark = [pytest.mark.campaign, pytest.mark.usefixtures("compile_quickly")]
VISITORS, STEPS = 20, 60
SECONDS = 120  # the most that the last of them waits


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page with a tiny network."""
    pytest.importorskip("gradio")
    from cdsde.serve.page import serve

    folder = tmp_path_factory.mktemp("visitors")
    given = TINY | {"data.root": "emoji", "data.source": "twemoji", "data.target": "fluent"}
    port = free_port()
    given |= {"method": "sdedit", "sample.clip": True, "serve.port": port}
    config = load_config(FOLDER, with_random_weights(folder, given, "score"))
    blocks = serve(config, folder, block=False)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


@pytest.mark.parametrize("seed", range(3))
def test_who_stays_gets_the_picture_and_who_leaves_blocks_nobody(address, seed, tmp_path):
    from gradio_client import Client, handle_file

    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(
        picture
    )

    def ask(client, noise):
        return client.submit(
            picture=handle_file(picture),
            method="sdedit",
            settings={"start": 100},
            steps=STEPS,
            seed=noise,
            api_name="/translate",
        )

    def pixels(job):
        return np.asarray(Image.open(job.result(timeout=SECONDS)[0]))

    alone = [pixels(ask(Client(address, verbose=False), noise)) for noise in range(3)]
    made, wrong = {}, []

    def visit(n: int):
        draw = random.Random(f"{seed} {n}")
        try:
            time.sleep(draw.uniform(0, 2))
            client = Client(address, verbose=False)
            job = ask(client, n % 3)
            if n % 2:
                time.sleep(draw.uniform(0, 2))
                if n % 4 == 1:
                    job.cancel()
                client.close()
            else:
                made[n] = pixels(job)
        except Exception as error:
            wrong.append((n, error))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    visitors = [threading.Thread(target=visit, args=(n,), daemon=True) for n in range(VISITORS)]
    for visitor in visitors:
        visitor.start()
    end = time.monotonic() + SECONDS
    for visitor in visitors:
        visitor.join(max(0, end - time.monotonic()))
    assert not wrong and sorted(made) == list(range(0, VISITORS, 2))
    for n, result in made.items():
        np.testing.assert_array_equal(result, alone[n % 3])
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 1 << 30
    begin = time.monotonic()
    np.testing.assert_array_equal(pixels(ask(Client(address, verbose=False), 0)), alone[0])
    assert time.monotonic() - begin < 30
