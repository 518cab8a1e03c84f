"""Weights of a model hub: what is asked for, what is fetched, and what is said where that fails."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from helpers import one_sentence, random_params
from hub_server import Hub

from cdsde.data import inputs
from cdsde.edit import pipeline
from cdsde.edit import run as edit_run
from cdsde.evaluate import edits
from cdsde.version import __version__
from cdsde.weights import diffusers, exported, hub, resolve
from cdsde.weights.formats import beside

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants, file_download, utils  # noqa: E402

PIXELS = "them/pixels"  # a pixel model as train_unconditional writes it
TENSORS = os.urandom(4096)


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f'{{"of": "{name}"}}'.encode()  # the cache has equal files once
        path.write_bytes(data if name.endswith(".json") else TENSORS + data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on this machine with one repository, and an empty cache."""
    server = Hub(tmp_path / "hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(constants, name, False)
    # It keeps whole chunks, and waits a second before it resumes.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    impatient = types.SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr(file_download, "time", impatient)
    monkeypatch.setattr(utils._http, "time", impatient)
    utils.close_session()
    unet = "unet/diffusion_pytorch_model"
    write(
        server.root / PIXELS,
        *("README.md", "model_index.json", "logs/events.out", "samples/0050.png"),
        *("scheduler/scheduler_config.json", "unet/config.json", f"{unet}.safetensors"),
        *(f"{unet}.fp16.safetensors", f"{unet}.bin", f"{unet}.msgpack", "unet/model.onnx"),
    )
    yield server
    server.shutdown()
    utils.close_session()


NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def fails(name: str, part: str = "score") -> str:
    with pytest.raises(ValueError) as error:
        hub.local(name, part)
    assert one_sentence(str(error.value)) and str(error.value).startswith(name)
    return str(error.value)


def test_what_is_needed_is_fetched_once(server, monkeypatch):
    folder = hub.local(f"hf:{PIXELS}")
    assert server.fetched() == NEEDED
    for name in NEEDED:
        assert (folder / name).read_bytes() == (server.root / PIXELS / name).read_bytes()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == NEEDED
    server.requests.clear()
    assert hub.local(f"hf:{PIXELS}@main") == folder
    # Whether there is a newer commit, and nothing else.
    assert server.requests == [("GET", f"/api/models/{PIXELS}/revision/main")]
    server.requests.clear()
    assert hub.local(f"hf:{PIXELS}@{server.commit(PIXELS)}/unet") == folder / "unet"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.local(f"hf:{PIXELS}") == folder
    assert server.requests == []
    server.down = 503
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.local(f"hf:{PIXELS}") == folder


def test_nothing_else_goes_out(server):
    hub.local(f"hf:{PIXELS}")
    paths = {path for _, path in server.requests}
    assert all(path.startswith((f"/api/models/{PIXELS}", f"/{PIXELS}/")) for path in paths)
    agents = {headers["User-Agent"] for headers in server.headers}
    assert all(agent.startswith(f"cdsde/{__version__}; hf_hub/") for agent in agents)
    assert not any("torch" in agent or "agent/" in agent for agent in agents)
    assert "hf_xet" not in sys.modules


def test_variables_of_the_hub_are_followed_and_the_token_sent(server, tmp_path):
    server.gated.add(PIXELS)
    code = f"from cdsde.weights import hub; print(hub.local('hf:{PIXELS}'))"
    variables = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(tmp_path / "home" / "hub")), done.stderr
    assert server.fetched() == NEEDED
    # The hub's own host alone gets the token, not the one on which large files lie.
    told = {"Authorization" in headers for headers in server.headers}
    elsewhere = [h for h in server.headers if h["Host"].startswith("localhost")]
    assert told == {True, False} and elsewhere
    assert not any("Authorization" in headers for headers in elsewhere)


@pytest.mark.parametrize(
    ("part", "there", "fetched"),
    [
        ("score", "config.json model.bin diffusion_pytorch_model.bin", (0, 2)),
        ("score", "config.json diffusion_pytorch_model.ema.safetensors model.bin", (0, 1)),
        ("score", "unet/config.json unet/diffusion_pytorch_model.fp16.safetensors x.bin", (0, 1)),
        (
            "score",
            "config.json diffusion_pytorch_model.safetensors.index.json "
            "diffusion_pytorch_model-00001-of-00002.safetensors "
            "diffusion_pytorch_model-00002-of-00002.safetensors pytorch_model.bin.index.json",
            (0, 1, 2, 3),
        ),
        (
            "network",
            "config.json vocab.txt model.safetensors pytorch_model.bin a/b.json",
            (0, 1, 2),
        ),
        (
            "model",
            "scheduler/scheduler_config.json text_encoder/config.json "
            "text_encoder/model.safetensors tokenizer/merges.txt tokenizer/vocab.json "
            "unet/config.json unet/diffusion_pytorch_model.safetensors vae/config.json "
            "vae/diffusion_pytorch_model.safetensors safety_checker/model.safetensors sd.ckpt "
            "vae/diffusion_pytorch_model.bin feature_extractor/preprocessor_config.json",
            range(9),
        ),
    ],
)
def test_files_of_each_kind_of_folder(server, part, there, fetched):
    names = there.split()
    write(server.root / "a/b", *names)
    folder = hub.local("hf:a/b", part)
    assert server.fetched() == sorted(names[i] for i in fetched)
    assert all((folder / names[i]).is_file() for i in fetched)


def test_a_file_comes_with_its_card_alone(server):
    write(server.root / "a/b", "x/score.safetensors", "x/score.json", "x/other.json", "e.pkl")
    write(server.root / "a/c", "x.pth", "x.config.json", "config.json", "x2.config.json")
    path = hub.local("hf:a/c/x.pth")
    assert server.fetched() == ["x.config.json", "x.pth"]
    assert beside.config_of(path, None) == {"of": "x.config.json"}
    server.requests.clear()
    path = hub.local("hf:a/b/x/score.safetensors")
    assert path.name == "score.safetensors" and path.with_suffix(".json").is_file()
    assert hub.local("hf:a/b@main/e.pkl").read_bytes() == (server.root / "a/b/e.pkl").read_bytes()
    assert server.fetched() == ["e.pkl", "x/score.json", "x/score.safetensors"]


@pytest.mark.parametrize("revision", ["refs/pr/1", "refs/convert/parquet", "v1.0"])
def test_a_revision_may_be_one_of_the_hubs_refs(server, revision):
    asked = hub._parse(f"hf:a/b@{revision}/unet/x.pth")
    assert (asked.repo, asked.revision, asked.path) == ("a/b", revision, "unet/x.pth")
    assert hub._parse(f"hf:a/b@{revision}").revision == revision
    assert f"has no revision {revision}; name a branch" in fails(f"hf:{PIXELS}@{revision}")
    server.revisions.add(revision)
    folder = hub.local(f"hf:{PIXELS}@{revision}/unet")
    assert folder.name == "unet" and (folder / "config.json").is_file()


def test_a_connection_that_is_cut_is_taken_up_again(server):
    server.cuts = [1000, 1000]
    folder = hub.local(f"hf:{PIXELS}")
    assert (folder / NEEDED[-1]).read_bytes() == (server.root / PIXELS / NEEDED[-1]).read_bytes()
    elsewhere = [h for h in server.headers if h["Host"].startswith("localhost")]
    ranges = [headers["Range"] for headers in elsewhere if "Range" in headers]
    assert ranges == ["bytes=1000-", "bytes=2000-"]


def test_a_cut_download_leaves_nothing_that_is_taken_for_whole(server, tmp_path, monkeypatch):
    server.cuts = [1000] + [0] * 6
    assert "was cut off" in fails(f"hf:{PIXELS}")
    there = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [name for name in there if name.endswith((".safetensors", ".incomplete"))]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in fails(f"hf:{PIXELS}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.cuts.clear()
    whole = hub.local(f"hf:{PIXELS}") / NEEDED[-1]
    assert whole.read_bytes() == (server.root / PIXELS / NEEDED[-1]).read_bytes()
    # A file that something else has cut.
    whole.resolve().write_bytes(TENSORS[:100])
    assert "has 100 of its" in fails(f"hf:{PIXELS}")


def test_a_cache_without_a_listing_serves_offline(server, tmp_path, monkeypatch):
    folder = hub.local(f"hf:{PIXELS}")
    for listing in (tmp_path / "cache").rglob("trees/*.json"):
        listing.unlink()
    monkeypatch.setattr(
        constants, "HF_HUB_CACHE", str(Path(constants.HF_HUB_CACHE).rename(tmp_path / "c"))
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.local(f"hf:{PIXELS}").name == folder.name


def test_failures_are_told_in_a_sentence(server, tmp_path, monkeypatch):
    assert hub.local("runs/x.pt") == Path("runs/x.pt")
    for name in ("hf:", "hf:alone", "hf:a/b@", "hf:/a/b"):
        with pytest.raises(ValueError, match="names no repository; write hf:OWNER/REPO"):
            hub.local(name)
    assert "has no repository them/none" in fails("hf:them/none")
    assert "has no revision v2; name a branch" in fails(f"hf:{PIXELS}@v2")
    assert "has no file or folder vae; it has README.md, logs" in fails(f"hf:{PIXELS}/vae")
    assert "has no folder vae" in fails(f"hf:{PIXELS}", "model")
    assert "but README.md, model_index.json; name one" in fails(f"hf:{PIXELS}", "network")
    write(server.root / "a/clip", "config.json", "pytorch_model.bin")
    assert "has pytorch_model.bin and no safetensors" in fails("hf:a/clip", "network")
    server.gated.add(PIXELS)
    assert "asks for a consent to its terms" in fails(f"hf:{PIXELS}")
    server.gated.clear()
    assert server.fetched() == []
    server.down = 403
    assert "answered 403" in fails(f"hf:{PIXELS}")
    server.down = 500
    assert "answered 500" in fails(f"hf:{PIXELS}")
    server.down = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in fails(f"hf:{PIXELS}@dev")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.shutdown()
    server.server_close()
    utils.close_session()
    assert "cannot be reached; check the network" in fails("hf:a/unseen")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'cdsde[hub]'" in fails(f"hf:{PIXELS}")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "because the disk is full: 4,"),
        (errno.EACCES, "cannot be written: permission"),
    ],
)
def test_a_disk_that_takes_nothing_is_told(server, monkeypatch, number, told):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), "blob")

    monkeypatch.setattr(file_download, "http_get", refuse)
    assert told in fails(f"hf:{PIXELS}")


def test_keys_take_names_of_a_hub(server, tiny, tmp_path, monkeypatch):
    config = tiny(model__captioner="hf:me/blip")
    file = server.root / "me/mine" / "score.safetensors"
    exported.save(file, config, "score", random_params(config, "score"), {})
    config.weights.score = "hf:me/mine/score.safetensors"
    _, origin = resolve.load(config, tmp_path, "score")
    assert origin.startswith("hf:me/mine/score.safetensors (sha256 ")

    read = []

    def reader(folder, *rest):
        read.append((Path(folder).is_dir(), Path(folder).parts))
        raise InterruptedError

    monkeypatch.setattr(diffusers, "load_clip", reader)
    monkeypatch.setattr(diffusers, "read_schedule", reader)
    monkeypatch.setattr(edit_run, "_captioned", reader)
    for name in ("clip", "blip", *(f"words/{folder}" for folder in hub.MODEL)):
        write(server.root / "me" / name, "config.json", "model.safetensors")
    source = inputs.open_input(tiny(sample__split="val"))
    for load in (
        lambda: pipeline.load("hf:me/words"),
        lambda: edits._clip("hf:me/clip"),
        lambda: edit_run.captions_of(config, source, [0]),
    ):
        with pytest.raises(InterruptedError):
            load()
    caches = ("models--me--words", "models--me--clip", "models--me--blip")
    commits = [server.commit(f"me/{name}") for name in ("words", "clip", "blip")]
    for (is_folder, parts), cache, commit in zip(read, caches, commits, strict=True):
        assert is_folder and cache in parts and commit in parts
