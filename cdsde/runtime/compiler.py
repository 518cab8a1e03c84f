"""Compiles programs with the options that make them fast.

XLA's CPU compiler hands matrix products, convolutions and sums to YNNPACK. In jaxlib 0.10 that pays
for products only: with the rest, a guided step at 256² takes 1.4 times as long as with XLA's own
code (docs/scaling.md). So only products go there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def jit(function: Callable, **options) -> Callable:
    """`jax.jit(function, **options)` with the compiler options of this platform."""
    chosen = CPU if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=chosen, **options)
