"""Compiles programs with the options that make them fast.

XLA's CPU compiler hands matrix products, convolutions and sums to YNNPACK. In jaxlib 0.10 that pays
for products only: with the rest, a guided step at 256² takes 1.4 times as long as with XLA's own
code (docs/scaling.md). So only products go there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import export

CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def options(platform: str) -> dict[str, str]:
    """The compiler options of a platform."""
    return CPU if platform == "cpu" else {}


def as_exported(ids: jax.Array) -> jax.Array:
    """The same ids; a program that uses them is prepared as one that is exported for any batch.

    Before JAX gives such a program to XLA, it joins its inner functions into one and computes once
    what they compute twice, such as a network that two energies look at. It does so where any part
    was exported for any batch (`jax.export`), and this is one. XLA then rounds as in the exported
    translation (weights/stablehlo.py), and the shipped tasks' default method takes 0.86 times as
    long.
    """
    return _identity(export.default_export_platform())(ids)


@functools.cache
def _identity(platform: str) -> Callable:
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b"), np.uint32)
    return export.export(jax.jit(lambda ids: ids), platforms=[platform])(shape).call


def jit(function: Callable, **others) -> Callable:
    """`jax.jit(function, **others)` with the compiler options of this platform."""
    chosen = options(jax.default_backend())
    return jax.jit(function, compiler_options=chosen or None, **others)
