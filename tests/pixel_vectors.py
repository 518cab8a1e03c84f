"""Vectors of published pixel-space networks (tests/golden/pixel), and files as PyTorch writes them.

The conventions (noise, recipes, tolerances) are those of the vectors' README.
"""

import functools
import hashlib
import json
import re
import zipfile

import jax
import numpy as np
from flax import traverse_util
from network_helpers import noise, quick_jit
from vector_helpers import FOLDER

from cdsde.weights.diffusers import networks
from cdsde.weights.torch import convert

PIXEL = FOLDER / "pixel"


def read_json(path):
    return json.loads(path.read_text())


def nhwc(x):
    return np.moveaxis(np.asarray(x), -3, -1)


def check(folder, file, name, actual, expected, least=1e-5):
    """Images NHWC against NCHW: each slice relative to its largest value, at the README's bound."""
    floors = read_json(PIXEL / folder / "floors.json")["floors"].get(file, {})
    bound = max(least, 5 * floors.get(name, {}).get("worst_slice_rel", 0))
    actual, expected = np.asarray(actual), nhwc(expected)
    assert actual.shape == expected.shape, name
    assert actual.dtype == np.float32, name
    axes = tuple(range(1, expected.ndim))
    off = (np.abs(actual - expected).max(axes) / np.abs(expected).max(axes)).max()
    assert off < bound, (name, off, bound)


@functools.cache
def compiled(module):
    return quick_jit(module.apply)


def at_times(module, params, x, times, **labels):
    """The network's output at each time, for one image `[C, H, W]` or one per time."""
    apply = compiled(module)
    x = np.broadcast_to(x, (len(times), *x.shape[-3:]))
    return np.stack([apply(params, nhwc(one)[None], t, **labels)[0]
                     for one, t in zip(x, times, strict=True)])  # fmt: skip


def shapes_of(module, *inputs):
    """Published names and shapes of a network's parameters, without computing any."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    leaves = traverse_util.flatten_dict(shapes["params"])
    return dict(networks.published(path, leaf.shape) for path, leaf in leaves.items())


def keys_sha256(shapes):
    lines = sorted(f"{name} {','.join(map(str, shape))}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def recipe_weights(shapes, seed, special=None):
    """The README's random weights; `special(name, n)` gives those of some names."""
    state = {}
    for j, name in enumerate(sorted(shapes)):
        n = noise(seed, j, shapes[name])
        if special is not None and (value := special(name, n)) is not None:
            state[name] = value
        elif n.ndim > 1:
            state[name] = (n / np.sqrt(np.float32(np.prod(n.shape[1:])))).astype(np.float32)
        else:
            state[name] = (name.endswith(".weight")) + np.float32(0.1) * n
    return state


def recipe_noise(text):
    """`noise(seed, index, [shape])` as recipe.json writes it."""
    seed, index, *shape = map(int, re.findall(r"\d+", text))
    return noise(seed, index, shape)


def from_weights(module, state, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return convert.fit(shapes, state, networks.published)


def save(path, content, **entries):
    """Writes `content` (dicts, lists, str, int, float32 arrays) as torch.save does."""
    storages = []

    def pickled(value):
        if isinstance(value, dict):
            return b"}" + b"".join(pickled(k) + pickled(v) + b"s" for k, v in value.items())
        if isinstance(value, list):
            return b"]" + b"".join(pickled(item) + b"a" for item in value)
        if isinstance(value, str):
            return b"V" + value.encode() + b"\n"
        if isinstance(value, int):
            return b"I%d\n" % value
        storages.append(np.ascontiguousarray(value, np.float32))
        strides = np.cumprod((1, *value.shape[:0:-1]))[::-1]
        storage = b"(Vstorage\nctorch\nFloatStorage\n" + pickled(str(len(storages) - 1))
        storage += b"Vcpu\n" + pickled(int(value.size)) + b"tQ"
        sizes, steps = (b"(" + b"".join(pickled(int(n)) for n in numbers) + b"t"
                        for numbers in (value.shape, strides))  # fmt: skip
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n" + sizes + steps + b"tR"

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled(content) + b".")
        for key, storage in enumerate(storages):
            archive.writestr(f"w/data/{key}", storage.tobytes())
        for name, data in entries.items():
            archive.writestr(f"w/{name}", data)
