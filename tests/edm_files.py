"""Writes network snapshots as EDM does, and as somebody would who means harm."""

import hashlib
import pickle
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from network_helpers import noise

from cdsde.weights.diffusers import networks
from cdsde.weights.formats import edm
from cdsde.weights.torch import pickle_reader


class Call(NamedTuple):
    """An object that unpickling makes by calling a name, and then gives a state."""

    name: str
    arguments: tuple = ()
    state: Any = None


class Raw(NamedTuple):
    """Operations of a pickle, as they are."""

    code: bytes


def pickled(value) -> bytes:
    """The operations that build a value, without a beginning and an end."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Call):
        name = "c{}\n{}\n".format(*value.name.rsplit(".", 1)).encode()
        state = b"" if value.state is None else pickled(value.state) + b"b"
        return name + pickled(tuple(value.arguments)) + b"R" + state
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(k) + pickled(v) for k, v in value.items()) + b"u"
    if isinstance(value, tuple | list):
        begin, end = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
        return begin + b"".join(map(pickled, value)) + end
    if isinstance(value, np.ndarray):
        strides = tuple(n // value.itemsize for n in value.strides)
        storage = Call("torch.storage._load_from_bytes", (storage_file(value),))
        return pickled(tensor(storage, 0, value.shape, strides))
    return pickle.dumps(value, protocol=3)[2:-1]


def tensor(storage, *layout) -> Call:
    return Call("torch._utils._rebuild_tensor_v2", (storage, *layout, False, {}))


def storage_file(values, size=None, count=None, little=True, view=None) -> bytes:
    """A file of PyTorch's old format with one storage, of float32 numbers."""
    size = values.size if size is None else size
    kind = Raw(b"ctorch\nFloatStorage\n")
    pid = pickled(("storage", kind, "0", "cpu", size, view))
    head = (pickle_reader.LEGACY_MAGIC, pickle_reader.LEGACY_PROTOCOL, {"little_endian": little})
    parts = [pickle.dumps(part, protocol=2) for part in head]
    parts += [pid + b"Q.", pickle.dumps(["0"], protocol=2)]
    count = struct.pack("<q", size if count is None else count)
    return b"".join([*parts, count, np.ascontiguousarray(values).tobytes()])


def persistent(kind, state) -> Call:
    """An object of EDM's classes, whose source text a reader must not run."""
    about = {"type": "class", "version": 6, "module_src": "raise RuntimeError('executed')"}
    about |= {"class_name": kind, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", (about,))


def module(tree, kind, **attributes) -> Call:
    """A module of a nested dict of arrays; those that are not trained lie among the buffers."""
    ordered = Call("collections.OrderedDict")
    state = {"training": False, "_backward_hooks": ordered, **attributes}
    arrays = {k: v for k, v in tree.items() if isinstance(v, np.ndarray)}
    buffers = {k: v for k, v in arrays.items() if k in ("resample_filter", "freqs", "u")}
    state["_parameters"] = {k: v for k, v in arrays.items() if k not in buffers}
    state["_parameters"]["bias_that_is_absent"] = None
    state["_buffers"] = buffers
    parts = {k: v for k, v in tree.items() if isinstance(v, dict)}
    container = {"enc": "ModuleDict", "dec": "ModuleDict"}
    # Where a test gives a part, it is as it is.
    given = attributes.pop("_modules", {})
    modules = {k: module(v, container.get(k, "Part")) for k, v in parts.items()} | given
    # An OrderedDict, as older versions of PyTorch have it there.
    items = b"".join(pickled(k) + pickled(v) for k, v in modules.items())
    state["_modules"] = Raw(pickled(ordered) + b"(" + items + b"u")
    if kind == "ModuleDict":
        return Call("torch.nn.modules.container.ModuleDict", (), state)
    # What NumPy writes for a number, here √½.
    dtype = Call("numpy.dtype", ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    scalar = Call("numpy.core.multiarray.scalar", (dtype, struct.pack("<d", 0.5**0.5)))
    return persistent(kind, {**state, "skip_scale": scalar})


def snapshot(kind, network, arguments, state_dict, **constants) -> dict:
    """The content of a snapshot with the tensors of `state_dict`, without `model.` in the names."""
    state_dict = dict(state_dict)
    outer = {"u": state_dict.pop("u")} if "u" in state_dict else {}
    tree = traverse_util.unflatten_dict({tuple(k.split(".")): v for k, v in state_dict.items()})
    inner = module(tree, network, _init_args=(), _init_kwargs=arguments)
    ema = module(outer, kind, _modules={"model": inner}, _init_args=(), **constants)
    return {"ema": ema, "loss_fn": persistent("Loss", {}), "augment_pipe": None}


def write(path, content) -> None:
    path.write_bytes(b"\x80\x04" + pickled(content) + b".")


def shapes(network, arguments) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's parameters, and of frequencies that are not trained."""
    fields = edm.fields_of(network, arguments)
    side = 2 ** (len(arguments.get("channel_mult", (1, 2, 2, 2))) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, arguments["in_channels"]), jnp.float32)
    made = edm.NETWORKS[network](**edm.tupled(fields))
    leaves = traverse_util.flatten_dict(jax.eval_shape(made.init, jax.random.key(0), x, 1.0))
    return dict(networks.published(path[1:], leaf.shape) for path, leaf in leaves.items())


def recipe_weights(network, arguments, seed) -> dict[str, np.ndarray]:
    """The state dict of the README's recipe."""
    found = shapes(network, arguments)
    frequencies = found.pop("map_noise.freqs", None)
    weights = {}
    for j, name in enumerate(sorted(found)):
        n = noise(seed, j, found[name])
        if n.ndim > 1:
            weights[name] = n / np.float32(np.sqrt(np.prod(n.shape[1:])))
        else:
            centre = np.float32(1 if name.endswith(".weight") else 0)
            weights[name] = centre + np.float32(0.1) * n
    if frequencies:
        weights["map_noise.freqs"] = 16 * noise(seed, 800, frequencies)
    return weights | edm.filters(network, edm.fields_of(network, arguments))


def keys_sha256(shapes) -> str:
    """The README's hash of the names and shapes of a state dict."""
    lines = sorted((name, ",".join(map(str, shape))) for name, shape in shapes.items())
    return hashlib.sha256("\n".join(f"{n} {s}" for n, s in lines).encode()).hexdigest()
