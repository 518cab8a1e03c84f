"""Parameter trees as flat dicts, and the digest that identifies a network in records."""

from __future__ import annotations

import hashlib

import jax
import numpy as np


def flatten(params) -> dict[str, np.ndarray]:
    """Flattens nested parameter dicts to {"a/b/kernel": array}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}


def unflatten(flat: dict[str, np.ndarray]) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def digest(params) -> str:
    """SHA-256 of names, shapes, dtypes and values of a parameter tree, as hexadecimal digits."""
    h = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        h.update(f"{name}{value.shape}{value.dtype}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    return h.hexdigest()
