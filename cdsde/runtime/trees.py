"""Parameter trees: flat dicts, damaged values, and the digest that identifies a network."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
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


def halved(value: np.ndarray) -> np.ndarray:
    """An array for a file: float16, or float32 where float16 would make a value infinite."""
    largest = np.abs(value).max(initial=0)
    return value.astype(np.float16 if largest <= np.finfo(np.float16).max else np.float32)


def digest(params) -> str:
    """SHA-256 of names, shapes, dtypes and values of a parameter tree, as hexadecimal digits."""
    h = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        h.update(f"{name}{value.shape}{value.dtype}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    return h.hexdigest()


def not_finite(tree) -> list[str]:
    """Names of the leaves that hold NaN or infinite values; arrays of the host or of devices.

    Arrays that are split over processes are looked at by all of them together.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    floating = [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    on_host = all(isinstance(x, np.ndarray) for _, x in floating)
    values = [x for _, x in floating]
    finite = [np.isfinite(x).all() for x in values] if on_host else _finite(values)
    return [_name(path) for (path, _), good in zip(floating, finite, strict=True) if not good]


@jax.jit
def _finite(values):
    return [jnp.isfinite(x).all() for x in values]


def _name(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
