"""The cost of a 256² configuration on TPU slices, compiled ahead of time on a CPU host.

    python -m cdsde.scaling.tpu_check --configs=cat2dog --chips=8,64 --programs=score,sample

libtpu compiles for a described slice; memory, FLOPs, bytes and collectives are the compiler's
numbers, per chip. The roofline is a bound, not a measurement: the longest of the times that a chip
at its published rates needs for the arithmetic, for moving the bytes and for the collectives. The
compiler counts one trip of a loop; the table multiplies by the number of trips.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import NamedTuple

from cdsde import config as config_lib
from cdsde.config import command_line
from cdsde.scaling import chips

CHIP = chips.V5E
TRAINING = ("score", "encoder", "classifier")
PROGRAMS = (*TRAINING, "sample", "evaluate")
OF_EDITS = ("edit", "edit_steps")  # programs of configs with an editor


class Cost(NamedTuple):
    """The cost of one call, per chip.

    Attributes:
      memory: bytes of arguments, of results that do not reuse an argument's memory, and of
        temporaries.
      arguments, temporaries: bytes, parts of `memory`.
      flops: FLOPs.
      bytes: memory traffic.
      collectives: `{kind: (number, bytes)}`.
    """

    memory: int
    arguments: int
    temporaries: int
    flops: float
    bytes: float
    collectives: dict[str, tuple[int, int]]


def cost(compiled) -> Cost:
    """The cost of a compiled program."""
    from cdsde.scaling import hlo

    m, c = compiled.memory_analysis(), compiled.cost_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return Cost(
        memory=total - m.alias_size_in_bytes,
        arguments=m.argument_size_in_bytes,
        temporaries=m.temp_size_in_bytes,
        flops=c["flops"],
        bytes=c["bytes accessed"],
        collectives=hlo.collectives(compiled.as_text()),
    )


def roofline(cost: Cost, chip) -> tuple[float, str]:
    """A lower bound of a call's time in seconds, and the resource that bounds it."""
    moved = sum(size for _, size in cost.collectives.values())
    times = {
        "arithmetic": cost.flops / chip.flops,
        "memory": cost.bytes / chip.bandwidth,
        "links": moved / chip.links,
    }
    bound = max(times, key=times.get)
    return times[bound], bound


def describe(program, cost: Cost, chip, mesh, seconds: float) -> list[str]:
    """A row of the table; `seconds` is the compile time."""
    time_of, bound = roofline(cost, chip)
    time_of *= program.trips
    gib = 2**30
    exchanged = ", ".join(
        f"{number} {kind} {size / 1e6:.0f} MB" for kind, (number, size) in cost.collectives.items()
    )
    return [
        program.name,
        f"{mesh.size}",
        "×".join(str(n) for n in mesh.shape.values()),
        f"{program.images / mesh.size:g}",
        f"{cost.arguments / gib:.2f}",
        f"{cost.temporaries / gib:.2f}",
        f"{cost.memory / gib:.2f}",
        f"{cost.flops * program.trips / 1e12:.2f}",
        f"{cost.bytes * program.trips / 1e9:.0f}",
        exchanged or "none",
        f"{1e3 * time_of:.0f} ({bound})",
        f"{program.images / mesh.size / time_of:.2f}",
        f"{seconds:.0f}",
    ]


HEADER = [
    "program",
    "chips",
    "data×fsdp",
    "images a chip",
    "arguments GiB",
    "temporaries GiB",
    "in all, of 16 GiB",
    "TFLOP",
    "GB",
    "collectives",
    "least ms a call",
    "images/s a chip",
    "compiled in s",
]


def build(name: str, config, devices, batch: int):
    """The `programs.Program` of one of `PROGRAMS` or `OF_EDITS`."""
    from cdsde.scaling import programs

    if name in OF_EDITS:
        return {"edit": programs.edit, "edit_steps": programs.edit_steps}[name](
            config, devices, batch
        )
    if name == "sample":
        return programs.translation(config, devices, batch)
    if name == "evaluate":
        return programs.evaluation("inception", devices, batch, config.data.image_size)
    return programs.train_step(config, name, devices, batch)


def arguments(argv) -> tuple[argparse.Namespace, dict]:
    """The parsed command line, and the overrides of the configs; exits if it is invalid."""
    parser = argparse.ArgumentParser(prog="cdsde.scaling.tpu_check", description=__doc__)
    parser.add_argument("--configs", default="cat2dog,male2female", help="names of configs")
    parser.add_argument("--chips", default="8,64,256", help="sizes of v5e slices")
    parser.add_argument("--fsdp", default="1,8", help="sizes of the fsdp axis, for training")
    parser.add_argument(
        "--programs", help=f"{','.join(PROGRAMS)}; edits by words: {','.join(OF_EDITS)}"
    )
    parser.add_argument("--images", type=int, default=8, help="images per chip")
    # O0 compiles a program in a minute on 2 CPU cores, O1 in more than ten. O0 fuses less, which
    # adds memory traffic, so that memory and time are upper bounds.
    parser.add_argument("--effort", default="O0", help="the compiler's effort: O0 to O3")
    try:
        rest, overrides = command_line.split_overrides(argv)
    except command_line.UserError as error:
        sys.exit(f"error: {error}")
    args = parser.parse_args(rest)
    for name in args.programs.split(",") if args.programs else ():
        if name not in PROGRAMS + OF_EDITS:
            known = ", ".join(PROGRAMS + OF_EDITS)
            sys.exit(f"error: --programs names '{name}'; choose from {known}")
    for count in map(int, args.chips.split(",")):
        if count not in CHIP.shapes:
            sys.exit(f"error: --chips={count} is no slice; choose from {list(CHIP.shapes)}")
    return args, overrides


def check(argv=None) -> None:
    """Entry point of `python -m cdsde.scaling.tpu_check`."""
    args, overrides = arguments(sys.argv[1:] if argv is None else argv)
    # Before JAX is imported: this host has no TPU, and other processes may be compiling.
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_MIN_LOG_LEVEL="3",
    )
    import jax

    jax.config.update("jax_optimization_level", args.effort)
    print("| " + " | ".join(["config", *HEADER]) + " |\n|" + "---|" * (len(HEADER) + 1))
    too_large = [
        program
        for name in args.configs.split(",")
        for count in map(int, args.chips.split(","))
        for program in _check_slice(name, count, args, overrides)
    ]
    if too_large:
        sys.exit(
            f"error: {'; '.join(too_large)} need more than {CHIP.memory / 2**30:.0f} GiB a chip: "
            "lower --images, or set remat=True, dtype=bfloat16 or mesh.fsdp"
        )


def _check_slice(config_name: str, count: int, args, overrides: dict) -> list[str]:
    """Print a row per program on a slice of `count` chips; returns those that do not fit."""
    from jax.experimental import topologies

    from cdsde import api
    from cdsde.runtime import mesh
    from cdsde.weights import adoption

    try:
        edits = api.load_config(config_name).method in config_lib.EDITORS
    except ValueError as error:
        sys.exit(f"error: {error}")
    names = args.programs.split(",") if args.programs else OF_EDITS if edits else PROGRAMS
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{CHIP.name}:{CHIP.shapes[count]}"
    )
    too_large = []
    for name in names:
        for fsdp in map(int, args.fsdp.split(",") if name in TRAINING else "1"):
            config = api.load_config(config_name, {"mesh.fsdp": fsdp, **overrides})
            try:  # a published network is described by its file; no work folder's counts here
                config = adoption.adopted(config, "no work folder")
            except ValueError as error:
                sys.exit(f"error: {error}")
            devices = mesh.make_mesh(list(topology.devices), fsdp=fsdp)
            try:
                program = build(name, config, devices, args.images * count)
            except ValueError as error:
                sys.exit(f"error: {error}")
            begin = time.monotonic()
            used = cost(program.lower().compile())
            row = describe(program, used, CHIP, devices, time.monotonic() - begin)
            print("| " + " | ".join([config_name, *row]) + " |", flush=True)
            if used.memory > CHIP.memory:
                too_large.append(f"{config_name} {program.name} on {count} chips")
    return too_large


if __name__ == "__main__":
    check()
