"""What later runs need not do again: compiled programs, and statistics of a data set.

Functions take the config's key `cache`: "auto" (`~/.cache/cdsde`), "off", or a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging

from cdsde.runtime import files

LEAST = 2**25  # bytes that are free where programs are kept


def folder(setting: str) -> Path | None:
    """The folder that a setting means; None for "off"."""
    if setting == "off":
        return None
    if setting != "auto":
        return Path(setting)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdsde"


def keep_programs(setting: str) -> None:
    """Keeps the compiled programs of this process, and reads those of earlier ones.

    With "auto", `JAX_COMPILATION_CACHE_DIR` may name another folder for programs.
    """
    place = folder(setting)
    if place is None:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_enable_compilation_cache", True)
    theirs = jax.config.jax_compilation_cache_dir if setting == "auto" else None
    place = theirs or str(place / "jax")
    jax.config.update("jax_compilation_cache_dir", place)
    if (free := files.free_space(place)) < LEAST:  # JAX would warn of each program
        logging.warning("%s has %d free bytes: compiled programs are not kept", place, free)
        jax.config.update("jax_enable_compilation_cache", False)
        return
    # By default JAX keeps programs that take a second; together, the many short ones take longer.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def array(setting: str, name: str, made_of: Mapping, compute: Callable) -> np.ndarray:
    """The array that `compute()` returns, from the cache if an earlier run has computed it.

    Args:
      setting: the key `cache`.
      name: what the array is; the start of its file's name.
      made_of: all that determines the array, in types that JSON has.
      compute: computes it.
    """
    place = folder(setting)
    if place is None:
        return compute()
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    path = place / "statistics" / f"{name}-{digest[:32]}.npy"
    if path.exists():
        try:
            return np.load(path)
        except (ValueError, OSError, EOFError) as error:
            logging.warning("%s cannot be read and is computed again: %s", path, error)
    value = compute()
    try:
        data = io.BytesIO()
        np.save(data, value)
        files.write_bytes(path, data.getvalue())
    except OSError as error:  # a home that cannot be written to: the next run computes it again
        logging.info("%s is not kept: %s", path, error)
    return value
