"""Times a `Program` with random arguments."""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.scaling.programs import Program


class Timing(NamedTuple):
    """Time and memory of a program on this machine.

    Attributes:
      seconds: median time of a call; nan if it was only compiled.
      compiled: seconds of tracing and compiling.
      flops: FLOPs of one call, by the compiler's count.
      temporaries: bytes of temporary memory.
    """

    seconds: float
    compiled: float
    flops: float
    temporaries: int


def arguments(program: Program):
    """Arrays of the program's shapes, of small random numbers; their values do not affect time."""
    rng = np.random.default_rng(0)

    def make(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            values = 0.02 * rng.standard_normal(leaf.shape, np.float32)
        else:
            values = np.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(jnp.asarray(values, leaf.dtype), leaf.sharding)

    return jax.tree.map(make, program.arguments)


def measure(program: Program, repeat: int = 3) -> Timing:
    """Compile, run once to warm up, then time `repeat` runs; with 0, only compile."""
    begin = time.perf_counter()
    compiled = program.lower().compile()
    spent = time.perf_counter() - begin
    first, *rest = arguments(program) if repeat else (None,)
    times = []
    for _ in range(repeat + 1 if repeat else 0):
        begin = time.perf_counter()
        out = jax.block_until_ready(compiled(first, *rest))
        times.append(time.perf_counter() - begin)
        if program.carries:  # the first argument was donated
            first = out[0]
    return Timing(
        statistics.median(times[1:]) if repeat else math.nan,
        spent,
        compiled.cost_analysis()["flops"] * program.trips,
        compiled.memory_analysis().temp_size_in_bytes,
    )


def peak(dtype=jnp.float32, size: int = 4096, repeat: int = 5) -> float:
    """The best FLOP/s of a large matrix product on one device."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)
