"""Times the programs on this machine: `bash launch/bench.sh`.

Prints, for each program, the time of a call, images per second, FLOP/s (by the compiler's count)
and their share of the FLOP/s of a large matrix product on the same device; then the input pipeline,
the loops around the programs and, given a checkout, the published PyTorch code beside them. Weights
are random: the time of a program does not depend on them.

Times mean something on an idle machine only: PyTorch's threads wait for each other, and another
program slows them down many times over.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from cdsde import api, data
from cdsde import config as config_lib
from cdsde.config import command_line
from cdsde.runtime import files, huge_pages, mesh, records
from cdsde.scaling import loops, programs, start, timing

OF_EDITS = ("edit",)  # parts of configs with an editor
# Parts of other configs.
PARTS = ("forward", "energies", "step", "train", "loop", "start", "input", "evaluate")
# Training steps of score networks on single pixels, at 32² and 64², with the published optimiser;
# --config does not matter to them. In patches of 2², as in the embedded tasks, 64² costs what 32²
# does.
PIXELS = {"train.score.optimizer": "adam", "score.patch_size": 1, "score.fourier": ()}
SMALL = {
    "train_small": {**PIXELS, "data.image_size": 32},
    "train_64": {**PIXELS, "score.channel_mult": (1, 2, 3, 4)},
}
SMALL_IMAGES = 16
# A whole translation as docs/scaling.md advises, which is compared with every published step.
WHOLE = "translation"
FEW = {"steps": 20, "solver": "dpmpp_2m", "spacing": "log_snr", "follow": True}
STEPS = 4  # steps of the timed sampler; the time of one step is a fourth of its time
HEADER = (
    "program",
    "images",
    "GFLOP",
    "ms",
    "images/s",
    "GFLOP/s",
    "of the peak",
    "compiled in s",
    "GiB",
)
PAIRED = ("step", "train", WHOLE, *SMALL)  # parts that launch/published_step.py has, too
PUBLISHED = Path(__file__).parents[2] / "launch" / "published_step.py"


def made(config, part: str, devices, images: int) -> list[programs.Program]:
    """The programs of a part."""
    if part in SMALL:
        config = api.load_config("twemoji2fluent", SMALL[part])
        return [programs.train_step(config, "score", devices, SMALL_IMAGES)]
    if part == "forward":
        return [programs.score_forward(config, devices, images)]
    if part == "energies":
        return [programs.energy_gradient(config, devices, images)]
    if part == "step":
        config = config.copy_and_resolve_references()
        config.sample.steps = STEPS
        return [programs.translation(config, devices, images)]
    if part == WHOLE:
        config = config.copy_and_resolve_references()
        config.sample.update(FEW)
        return [programs.translation(config, devices, images)]
    if part == "edit":
        config = config.copy_and_resolve_references()
        config.edit.steps = 1
        return [programs.edit_steps(config, devices, images)]
    if part == "train":
        stages = ("score", "encoder", "classifier")
        return [programs.train_step(config, stage, devices, images) for stage in stages]
    size = config.data.image_size
    names = ("inception", "efficientnet_lite0")
    return [programs.evaluation(name, devices, images, size) for name in names]


def row(program: programs.Program, timed: timing.Timing, peak: float) -> tuple[str, ...]:
    """A row of the table; for a loop, the cost of one trip."""
    seconds, flops = timed.seconds / program.trips, timed.flops / program.trips
    rate = flops / seconds
    name = f"{program.name}, one step" if program.trips > 1 else program.name
    rates = (
        f"{1e3 * seconds:.0f}",
        f"{program.images / seconds:.2f}",
        f"{rate / 1e9:.0f}",
        f"{100 * rate / peak:.0f}%",
    )
    return (
        name,
        str(program.images),
        f"{flops / 1e9:.0f}",
        *([""] * 4 if math.isnan(seconds) else rates),  # nan: it was only compiled
        f"{timed.compiled:.0f}",
        f"{timed.temporaries / 2**30:.2f}",
    )


def input_rate(image_size: int, workers: int, batch: int = 16, seconds: float = 5.0) -> float:
    """Images per second of the training stream: JPEGs of 512² from disk, resized and flipped."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for n in range(64):
            coarse = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(coarse).resize((512, 512)).save(f"{folder}/{n}.jpg", quality=95)
        stream = data.train_iterator(
            [_Uncached(data.FilesSource(folder))],
            data.Reading(image_size, "bicubic"),
            batch_size=batch,
            seed=0,
            workers=workers,
        )
        for _ in range(4):
            next(stream)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            count += len(next(stream)["image"])
        rate = count / (time.perf_counter() - begin)
        stream.close()
        return rate


class _Uncached:
    """A source with a length too large for the loader to cache its images."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> dict:
        return self._source[index % len(self._source)]


def published(checkout: str, interpreter: str, part: str, images: int) -> dict:
    """Times the published code of a part with another interpreter.

    Returns:
      `seconds`, by the program's name, `torch` and `device`.

    Raises:
      ValueError: it failed; the message has the last line of its output.
    """
    command = [interpreter, str(PUBLISHED), checkout, f"--part={part}", f"--images={images}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"the published code did not run in {interpreter}: {message}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def pairs(
    part: str, ours: dict[str, float], theirs: dict, steps: int
) -> list[tuple[str, float, float]]:
    """`(name, seconds here, seconds there)` of the programs that both sides have.

    A whole translation here is compared with `steps` steps there.
    """
    if part == WHOLE:
        few, there = FEW["steps"], steps * theirs["seconds"]["step"]
        return [(f"{few} steps for {steps}", few * seconds, there) for seconds in ours.values()]
    ours = {"step" if part == "step" else name.split()[-1]: t for name, t in ours.items()}
    there = theirs["seconds"]
    return [(name, seconds, there[name]) for name, seconds in ours.items() if name in there]


def bench(argv=None) -> None:
    """Entry point of `python -m cdsde.scaling.bench`."""
    parser = argparse.ArgumentParser(prog="cdsde.scaling.bench", description=__doc__)
    parser.add_argument("--config", default="cat2dog", help="a config, as for cdsde.main")
    parser.add_argument("--images", default="1", help="images per call: 1,8")
    parser.add_argument("--parts", help=f"some of {','.join((*PARTS, WHOLE, *SMALL))}; edits: edit")
    parser.add_argument("--repeat", type=int, default=3, help="runs; 0: compile only")
    parser.add_argument("--output", help="FILE.json of the results")
    parser.add_argument("--published", help="a checkout of EGSDE, timed for comparison")
    parser.add_argument("--python", default=sys.executable, help="its interpreter, with PyTorch")
    try:
        rest, overrides = command_line.split_overrides(sys.argv[1:] if argv is None else argv)
    except command_line.UserError as error:
        sys.exit(f"error: {error}")
    args = parser.parse_args(rest)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read the flags
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # "compiled in s" is no cache's time
    try:
        _run(args, overrides)
    except (ValueError, OSError, command_line.UserError) as error:
        sys.exit(f"error: {error}")
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)


def _run(args, overrides: dict) -> None:
    config = api.load_config(args.config, overrides)
    default = OF_EDITS if config.method in config_lib.EDITORS else PARTS
    known = (*default, WHOLE, *SMALL)
    if config.method not in config_lib.EDITORS and "method" not in overrides:
        config.method = "egsde"
    parts = args.parts.split(",") if args.parts else default
    for part in parts:
        if part not in known:
            raise ValueError(
                f"--parts names '{part}'; of {args.config} choose from {', '.join(known)}"
            )
    devices = mesh.make_mesh(jax.local_devices())
    peak = timing.peak(jnp.dtype(config.dtype)) * devices.size
    kind = jax.devices()[0].device_kind
    print(f"{args.config}, {config.dtype}, {devices.size} × {kind}; matrix product {peak / 1e9:.0f}"
          " GFLOP/s\n")  # fmt: skip
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    rows, compared, timed_loops, failures = [], [], [], []

    def keep():
        """Writes what there is so far: a run may be ended by a limit of time or memory."""
        if args.output:
            record = {"made": records.provenance(), "device": kind, "peak_flops": peak}
            record |= {"config": args.config, "overrides": overrides, "published": compared}
            record |= {"loops": timed_loops, "columns": HEADER, "rows": rows}
            files.write_json(Path(args.output), record)

    for images in map(int, args.images.split(",")):
        for part in (p for p in parts if p not in ("loop", "start", "input")):
            seconds = {}
            for program in made(config, part, devices, images):
                timed = timing.measure(program, args.repeat)
                seconds[program.name] = timed.seconds / program.trips
                rows.append(row(program, timed, peak))
                print("| " + " | ".join(rows[-1]) + " |", flush=True)
                keep()
            if args.published and part in PAIRED:
                try:
                    found, versions = _compared(args, config, part, images, seconds)
                except ValueError as error:  # the rows to come are worth having without it
                    failures.append(error)
                else:
                    compared += found
    if "input" in parts:
        for workers in (0, 2):
            rate = input_rate(config.data.image_size, workers)
            rows.append((f"input, {workers} workers", "16", "", "", f"{rate:.1f}", "", "", "", ""))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    if "loop" in parts:
        print("\nthe loops around the programs:")
        for timed_loop in loops.measure(config, devices):
            timed_loops.append(timed_loop._asdict())
            print(timed_loop.sentence(), flush=True)
    if "start" in parts:
        print("\na program of this package:")
        for sentence in start.measure():
            print(sentence, flush=True)
    if compared:
        print(f"\nbeside the published code, {versions}:")
        for part, name, batch, here, there, ratio in compared:
            print(f"{part} {name}, {batch} image(s): {here:.3f} s, published {there:.3f} s, "
                  f"{ratio:.2f} times as fast")  # fmt: skip
    keep()
    if failures:
        raise failures[0]


def _compared(args, config, part: str, images: int, seconds: dict) -> tuple[list[tuple], str]:
    """Rows of a part beside the published code, and what that runs on.

    Raises:
      ValueError: the published code failed.
    """
    batch = SMALL_IMAGES if part in SMALL else images
    theirs = published(args.published, args.python, "step" if part == WHOLE else part, batch)
    found = pairs(part, seconds, theirs, config_lib.start_index(config))
    rows = [(part, name, batch, here, there, there / here) for name, here, there in found]
    return rows, f"PyTorch {theirs['torch']}, {theirs['device']}"


if __name__ == "__main__":
    huge_pages.ask()
    bench()
