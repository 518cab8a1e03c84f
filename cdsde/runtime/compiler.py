"""Compiles programs with the options that make them fast, and keeps them for later runs.

XLA's CPU compiler hands matrix products, convolutions and sums to YNNPACK. In jaxlib 0.10 that pays
for products only: convolutions and sums take up to twice and five times as long as XLA's own code,
a guided step at 256² 1.4 times as long (docs/scaling.md). So only products go there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax

CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def jit(function: Callable, **options) -> Callable:
    """`jax.jit(function, **options)` with the compiler options of this platform."""
    chosen = CPU if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=chosen, **options)


def keep_programs(folder: str) -> None:
    """Keeps compiled programs in `folder` and reads them from there; see the key
    `compilation_cache` for "auto" and "off". It holds for all programs of this process.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if folder == "auto":
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = jax.config.jax_compilation_cache_dir or str(Path(caches) / "cdsde" / "jax")
    jax.config.update("jax_compilation_cache_dir", folder)
    # By default JAX keeps programs that take a second; together, the many short ones take longer.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
