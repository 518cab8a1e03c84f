"""The command line as people meet it: processes of their own, a whole task by overrides alone."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from helpers import FOLDER, TINY, one_sentence, overrides, read_json
from PIL import Image

from cdsde import load_config, main, translate
from cdsde.data import decode
from cdsde.runtime import cache
from cdsde.weights import adoption, checkpoint

ROOT = Path(__file__).parent.parent


def cdsde(*arguments, cwd=None, module=("-m", "cdsde.main"), **environment):
    """Run the program; standard output and error come back as text."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, *module, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=300,
    )  # fmt: skip


def test_help_explains_modes_and_overrides():
    shown = cdsde("--help").stdout
    for word in ("--config", "--mode", "--workdir", "--config.KEY=VALUE", "configs/", "runs/TASK"):
        assert word in shown
    for mode in ("train:", "sample:", "eval:", "import:", "export:"):
        assert mode in shown
    assert len(shown.splitlines()) < 40 and "Traceback" not in shown


# What is said of mistakes is tested in tests/config; here, that it reaches people, and how.
MISTAKES = {
    "key": (["--config.sample.stepz=3"],
            "config has no key 'sample.stepz'; the nearest are sample.steps,"),
    "type": (["--config.train.steps=many"],
             "config.train.steps is a whole number, and 'many' is not"),
    "method": (["--config.method=gan"], "config.method is 'gan'; choose one of contrastive_sde,"),
    "mode": (["--mode=paint"],
             "value should be one of <train|sample|eval|edit|serve|import|export>"),
    "two configs": (["--config=configs/cat2dog.py"],
                    "folder.py, configs/cat2dog.py); give it once"),
    "flag": (["--stepz=3"], "Unknown command line flag 'stepz'"),
    "none": (["--config.sample.steps=None", "--config.data.root=None"],
             "config.data.root always has a value, so that None cannot unset it"),
    "page": (["--mode=serve", "--config.sample.keep_size=True"],
             "config.sample.keep_size is True, and the page of --mode=serve"),
    "input": (["--config.sample.input=no/such"], "'no/such' does not exist"),
    "weights": ([f"--config.sample.input={ROOT / 'cdsde/assets/emoji'}"], "holds no image"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_on_standard_error(what, tmp_path):
    wrong, expected = MISTAKES[what]
    done = cdsde(f"--config={FOLDER}", "--mode=sample", *wrong, cwd=tmp_path)
    assert done.returncode != 0 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and expected in last
    assert "Traceback" not in done.stderr
    # Folders with other files warn of these first.
    assert one_sentence(done.stderr.strip()) or what == "weights"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "mode", "told"),
    [
        (MemoryError(), "sample",
         "the memory does not suffice; lower config.sample.batch_size or config.data.image_size"),
        (MemoryError("Unable to allocate 9. GiB"), "edit",
         "suffice (Unable to allocate 9. GiB); lower config.sample.batch_size or config."),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nA: 1"),
         "train", "suffice (Out of memory allocating 9 bytes); lower config.train.batch_size or"),
        (jax.errors.JaxRuntimeError("INTERNAL: a fault"), "train", None),
        (RuntimeError("a fault"), "eval", None),
    ],
)  # fmt: skip
def test_too_little_memory_is_told_by_the_keys_to_change(tmp_path, monkeypatch, error, mode, told):
    def program(config, workdir):
        raise error

    given = {"config": load_config(FOLDER), "mode": mode, "workdir": str(tmp_path)}
    given |= dict.fromkeys(("coordinator", "processes", "process"))
    given["config"].method = "ddim" if mode == "edit" else "sdedit"
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**given))
    monkeypatch.setattr(cache, "keep_programs", lambda setting: None)
    monkeypatch.setattr(main, "_program", lambda mode, config: program)
    monkeypatch.setattr(adoption, "adopted", lambda config, workdir, importing: config)
    with pytest.raises(type(error) if told is None else SystemExit) as ended:
        main.run(["cdsde"])
    assert ended.value is error if told is None else told in str(ended.value.code)


def test_a_config_that_is_not_there(tmp_path):
    done = cdsde(f"--config={FOLDER.with_name('foldr.py')}", "--mode=train", cwd=tmp_path)
    assert done.returncode == 2 and one_sentence(done.stderr.strip())
    assert "foldr.py' is not a file; there are " in done.stderr and str(FOLDER) in done.stderr


def test_flags_that_are_missing_are_named_on_one_line():
    done = cdsde()
    assert done.returncode == 2 and one_sentence(done.stderr.strip())
    assert "--config " in done.stderr and "--mode " in done.stderr


def test_no_other_framework_is_loaded(tmp_path):
    code = (
        "import sys\n"
        "from cdsde import main, api\n"
        "from cdsde.translation import run\n"
        "from cdsde.evaluate import translations\n"
        "from cdsde.train import loop\n"
        "print([m for m in ('torch', 'tensorflow', 'tensorflow_datasets') if m in sys.modules])\n"
    )
    done = cdsde(code, module=("-c",))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# --- Ctrl-C ---


@pytest.mark.parametrize("mode", ["train", "sample", "eval", "edit", "serve"])
def test_ctrl_c_is_one_sentence_and_code_130(mode, tmp_path):
    config = "emoji_words" if mode == "edit" else "twemoji2fluent"
    program = subprocess.Popen(
        [sys.executable, "-m", "cdsde.main", f"--config={config}", f"--mode={mode}"],
        stderr=subprocess.PIPE, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    # While it imports its own modules: they are mapped right after JAX's library.
    maps = Path(f"/proc/{program.pid}/maps")
    while program.poll() is None and "jaxlib" not in maps.read_text():
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    said = program.communicate(timeout=60)[1]
    assert program.returncode == 130
    assert one_sentence(said.strip()) and said.strip().startswith("stopped by Ctrl-C; ")
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
import multiprocessing, signal, sys, threading, time
from pathlib import Path
from cdsde.runtime import files, interrupts

def work():
    time.sleep(1000)

if __name__ == "__main__":
    interrupts.take()
    worker = multiprocessing.get_context("spawn").Process(target=work, daemon=True)
    worker.start()
    print(worker.pid, flush=True)
    with files.replacing("half.png") as temporary:
        temporary.write_bytes(b"half")
        print("writing", flush=True)
        # As a compilation does, this does not come back to Python's signal handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        threading.Lock().acquire() and time.sleep(1000)
"""


def test_ctrl_c_leaves_no_half_file_and_no_process(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(ENDLESS)
    program = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    worker = int(program.stdout.readline())
    assert program.stdout.readline() == "writing\n"
    program.send_signal(signal.SIGINT)
    assert one_sentence(program.communicate(timeout=60)[1].strip()) and program.returncode == 130
    assert [p.name for p in tmp_path.iterdir()] == ["program.py"]
    state = Path(f"/proc/{worker}/stat")
    assert not state.exists() or " Z " in state.read_text()


# --- a folder of somebody else's pictures ---


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """DIR/{train,val}/{cat,dog}: photos and drawings of all shapes, with what else lies around."""
    root = tmp_path_factory.mktemp("my animals")
    r = np.random.default_rng(0)
    for domain, colour in (("cat", (200, 120, 60)), ("dog", (90, 90, 110))):
        for split, count in (("train", 5), ("val", 3)):
            folder = root / split / domain
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = r.normal(colour, 30, (20 + n, 24, 3)).clip(0, 255).astype(np.uint8)
                image = Image.fromarray(pixels)
                name = ("IMG {}.JPG", "{}.png", "grey {}.png")[n % 3].format(n)
                image = image.convert("L") if name.startswith("grey") else image
                image.save(folder / name)
            (folder / "Thumbs.db").write_bytes(b"\0")
    return root


def arguments(animals, workdir, mode: str, **more) -> list[str]:
    """Nothing but overrides: tiny networks, two steps of each stage."""
    data = {"data.root": animals, "data.source": "cat", "data.target": "dog"}
    changes = TINY | data | {"method": "egsde", "train.steps": 2} | more
    return [f"--config={FOLDER}", f"--mode={mode}", f"--workdir={workdir}", *overrides(changes)]


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.slow
def test_train_sample_and_eval_on_somebody_s_pictures(
    animals, tmp_path, compiled_programs, on_devices
):
    work = tmp_path / "work folder"
    # As `compile_quickly` does for this process.
    quick = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": compiled_programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    done = cdsde(*arguments(animals, work, "train"), **quick)
    assert done.returncode == 0, done.stderr
    stages = ("score", "classifier")
    assert sorted(p.name for p in (work / "checkpoints").iterdir()) == sorted(stages)
    for stage in stages:
        assert checkpoint.latest_step(work, stage) == 2
        log = (work / "logs" / stage / "metrics.csv").read_text().splitlines()
        assert {"step", "loss"} <= set(log[0].split(",")) and len(log) == 3
        assert list((work / "logs" / stage).glob("events.out.tfevents.*"))
        assert f"{stage}: " in done.stderr
    assert checkpoint.saved_config(work, "score")["data"]["source"] == "cat"

    done = cdsde(*arguments(animals, work, "sample"), **quick)
    assert done.returncode == 0, done.stderr
    folder = work / "samples" / "egsde"
    names = ["IMG 0.png", "1.png", "grey 2.png"]
    assert {p.name for p in folder.iterdir()} == {*names, "settings.json", "sheet.png"}
    assert all(decode(folder / name).shape == (16, 16, 3) for name in names)
    assert f"results in {folder}" in done.stderr

    done = cdsde(*arguments(animals, work, "eval"), **quick)
    assert done.returncode == 0, done.stderr
    out = work / "eval" / "egsde"
    assert {p.name for p in out.iterdir()} == {"metrics.json", "metrics.csv", "per_image.csv"}
    record = read_json(out / "metrics.json")
    assert record["metrics"]["L2 to source"]["images"] == 3
    assert "checkpoints/score/2 " in record["sampling"]["weights"]["score"]
    assert "to the source" in done.stdout and "egsde" in done.stdout

    # The same task in Python, for the pictures where they lie.
    changes = {"data.root": animals, "data.source": "cat", "data.target": "dog"}
    config = load_config(FOLDER, TINY | changes | {"method": "egsde"})
    paths = sorted((animals / "val" / "cat").glob("*.*[gG]"))
    assert len(paths) == 3
    on_devices(1)
    made = translate(config, paths, workdir=work)
    for path, image in zip(paths, made, strict=True):
        np.testing.assert_allclose(image, decode(folder / f"{path.stem}.png"), atol=1)

    # Asked for again, what is there is not made again; another seed is refused in one line.
    done = cdsde(*arguments(animals, work, "sample", **{"sample.seed": 1}), **quick)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "holds results made with other settings (different: sample.seed was 0 and is 1)"
        in done.stderr
    )
    done = cdsde(*arguments(animals, work, "train"), **quick)
    assert done.returncode == 0 and "nothing to train" in done.stderr


def test_a_file_where_a_folder_should_be_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    emoji = FOLDER.with_name("twemoji2fluent.py")
    done = cdsde(f"--config={emoji}", "--mode=sample", "--config.sample.output=file", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "'file'" in last
