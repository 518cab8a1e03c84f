"""Reads published PyTorch weights into the networks, and writes them back.

Contract: a state dict is `{published name: array}` without the `module.` of DataParallel; `params`
has the structure of the network's `init`, `{"params": tree}`, float32. Each parameter has one
published name, derived from its path by a rule (`input_blocks_3_0/in_layers_2/kernel` <->
`input_blocks.3.0.in_layers.2.weight`), so import and export are one map in two directions.
Convolution kernels are (H, W, in, out) in JAX and (out, in, H, W) in PyTorch; linear kernels are
(in, out) and (out, in), with trailing ones where the published layer is a 1x1 convolution.

PyTorch is imported only to write a `.pt`, and to read one of "adm", "adm_encoder" or "ddpm" that
holds more than `pickle_reader` knows.
"""

import functools
import importlib.util
import io
import pickle
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from cdsde.runtime import files
from cdsde.weights.torch import kinds, layouts, pickle_reader, safetensors_file

Arrays = dict[str, np.ndarray]
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
# Keys under which trainers store the weights; averaged weights first, as samplers use them.
WRAPPERS = ("ema", "ema_state_dict", "model_ema", "params_ema", "shadow")
WRAPPERS += ("state_dict", "model_state_dict", "model", "net", "params")
LISTED_KEYS = 12  # maximum for each sort of mismatch in an error message


class Damaged(ValueError):
    """Weights of the right names and shapes that hold NaN or infinite values."""


class Mismatch(ValueError):
    """Weights that do not fit a network.

    Attributes:
      wrong: `{field: (passed, what the file has)}` of the constructor fields that contradict the
        file; empty where none does.
    """

    def __init__(self, message: str, wrong: Mapping[str, tuple[Any, Any]]):
        super().__init__(message)
        self.wrong = dict(wrong)


def load_torch(path: str | Path, kind: str, **arch: Any) -> tuple[Callable, dict]:
    """Loads published weights into the network of `kind`.

    Args:
      path: `.pt`/`.pth` (only tensors are accepted) or `.safetensors`; PyTorch is not needed.
      kind: "adm", "ddpm", "adm_encoder"; "cut_generator", "cut_discriminator", "cut_patch_sampler"
        (CUT's `latest_net_{G,D,F}.pth`); "inception" (the file of pytorch-fid); "lpips_alex",
        "lpips_vgg", "lpips_squeeze" (torchvision's backbone or a file of `lpips`; the published
        linear heads are added if missing); "efficientnet_lite0"; "dino_vitb8"
        (`dino_vitbase8_pretrain.pth`).
      **arch: constructor fields of the network. Fields that the shapes determine are inferred;
        shapes do not determine `num_heads`, `num_head_channels` and `new_attention_order` (default:
        the published cat2dog values), nor `dropout`, `dtype` and `remat`.

    Returns:
      `(apply, params)`, where `params` is `{"params": tree}` of float32 arrays, and `apply` is pure
      and jittable:
        adm, ddpm, adm_encoder: `apply(params, x, t)` with x `[B, H, W, C]` and t the raw index
          0..999, scalar or `[B]`, returns the network's output ("adm_encoder": `(logits,
          features)`).
        cut_generator, cut_discriminator, cut_patch_sampler: `apply(params, ...)`, see
          `networks.CUTGenerator`, `PatchDiscriminator` and `PatchSampler`.
        inception, efficientnet_lite0: `apply(params, images)` with float images `[B, H, W, 3]` in
          [0, 1] of any size returns a dict of features, see `InceptionV3` ("64", "64_mean", ...,
          "2048", "logits") and `EfficientNetLite0` ("block0", "block0_mean", ..., "pooled",
          "logits"); preprocessing is included.
        dino_vitb8: `apply(params, images)` with the same images returns "keys" and "class", see
          `DINO`.
        lpips_alex, lpips_vgg, lpips_squeeze: `apply(params, a, b)` with float images
          `[B, H, W, 3]` in [-1, 1] returns the distance of each pair `[B]`; `apply(params, a, b,
          method="layers")` returns the contribution of each slice, `[B, 5]`, of SqueezeNet
          `[B, 7]`.

    Raises:
      Mismatch: keys or shapes do not fit the network (the message lists them).
      ValueError: unknown kind or field; the file would execute code or is damaged.
    """
    state_dict = read_state_dict(path, plain=kinds.of_name(kind).plain)
    try:
        network, params = fitted(state_dict, kind, arch, consume=True)
        return network.apply, params
    except Mismatch as error:
        raise Mismatch(f"{path}: {error}", error.wrong) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_state_dict(
    state_dict: Mapping[str, np.ndarray], kind: str, **arch: Any
) -> tuple[Callable, dict]:
    """Builds the network of `kind` with the weights of a state dict; see `load_torch`.

    Args:
      state_dict: published names (without `module.`) to arrays.
      kind: one of `kinds.KINDS`.
      **arch: constructor fields; absent ones are inferred or take their default.

    Returns:
      `(apply, params)`.

    Raises:
      Mismatch: keys or shapes do not fit the network.
      ValueError: unknown kind or field.
    """
    network, params = fitted(state_dict, kind, arch)
    return network.apply, params


def fitted(
    state_dict: Mapping[str, np.ndarray], kind: str, arch: Mapping[str, Any], consume: bool = False
) -> tuple[Any, dict]:
    """`(linen module, params)` as in `from_state_dict`; `consume` as in `fit`."""
    spec = kinds.of_name(kind)
    inferred = infer_architecture(state_dict, kind, **arch)
    network = _build(spec, {**inferred, **arch}, kind)
    state_dict = _supplemented(spec.rename(state_dict), spec)
    inputs, labels = spec.inputs(network, state_dict)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs, **labels)
    try:
        published = functools.partial(_published, spec)
        return network, fit(shapes, state_dict, published, consume)
    except Damaged:
        raise
    except ValueError as error:
        wrong = _contradictions(arch, inferred)
        hint = ", ".join(
            f"{field}={passed} was passed where the file says {found}"
            for field, (passed, found) in wrong.items()
        )
        hint = (
            f"likely wrong: {hint}"
            if wrong
            else f"no field passed contradicts it, so it is incomplete or not quite kind '{kind}'"
        )
        raise Mismatch(f"the weights do not fit kind '{kind}': {error}; {hint}.", wrong) from None


def fit(
    shapes: Mapping,
    state_dict: Mapping[str, np.ndarray],
    published: Callable,
    consume: bool = False,
) -> dict:
    """A network's parameters from a state dict.

    Args:
      shapes: result of `jax.eval_shape` of the network's `init`; only its "params" are used.
      state_dict: published names to arrays.
      published: `(path, shape) -> (published name, published shape)` of a parameter.
      consume: take each array out of `state_dict`, so that memory never holds all weights twice.

    Returns:
      `{"params": tree}`, float32.

    Raises:
      ValueError: keys are missing, unexpected or of another shape; the message lists them.
      Damaged: weights hold NaN or infinite values.
    """
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes["params"])
    names = {path: published(path, leaf.shape) for path, leaf in leaves.items()}
    if problems := _mismatches(state_dict, dict(names.values())):
        raise ValueError(problems)
    damaged = [name for name, _ in names.values() if not np.isfinite(state_dict[name]).all()]
    if damaged:
        raise Damaged(
            f"{len(damaged)} of the weights hold NaN or infinite values ({_listed(damaged)}): get "
            "the file again, or another checkpoint of that training"
        )
    params, take = {}, getattr(state_dict, "pop" if consume else "__getitem__")
    for path, (name, _) in names.items():
        value = take(name)
        if path[-1] == "kernel" and len(leaves[path].shape) == 4:
            value = np.transpose(value, (2, 3, 1, 0))
        elif path[-1] == "kernel":
            value = value.reshape(value.shape[:2]).T
        params[path] = jnp.asarray(value, jnp.float32)
    return {"params": traverse_util.unflatten_dict(params)}


def published_leaf(module: str, leaf: str) -> str:
    """Published name of a parameter of a published module."""
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)
    return f"{module}.{leaf}" if module else leaf


def published_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Published shape of a parameter: convolutions (out, in, H, W), linear layers (out, in)."""
    if leaf != "kernel":
        return tuple(shape)
    return (shape[-1], shape[-2], *shape[:-2])


def infer_architecture(state_dict: Mapping[str, Any], kind: str, **known: Any) -> dict[str, Any]:
    """Constructor fields that the keys and shapes of a state dict determine.

    Args:
      state_dict: published names (without `module.`) to arrays or anything with a `shape`.
      kind: one of `kinds.KINDS`.
      **known: known fields. If several divisions of an encoder's blocks into levels fit,
        `num_res_blocks`, `channel_mult` or `image_size` decide. The `attention_resolutions` of a
        DDPM network refer to `image_size` (default 256).

    Returns:
      Keyword arguments for the class of `kind`.

    Raises:
      ValueError: unknown kind, keys of another kind, or keys that fit several layouts or none.
    """
    spec = kinds.of_name(kind)
    renamed = spec.rename(state_dict)
    for prefix in spec.prefixes:
        if not layouts.has_prefix(renamed, prefix):
            fitting = [
                name for name, other in kinds.KINDS.items() if kinds.contains(state_dict, other)
            ]
            hint = f"they look like kind '{fitting[0]}'" if fitting else "check the file"
            keys = _listed(sorted(state_dict))
            raise ValueError(f"no key of kind '{kind}' begins with '{prefix}' in {keys}; {hint}.")
    return spec.infer(renamed, known)


def to_state_dict(params: Mapping, kind: str, prefix: str = "") -> Arrays:
    """The published state dict of a network's parameters; the inverse of `from_state_dict`.

    Args:
      params: `{"params": tree}` or the tree alone, of the network class of `kind`.
      kind: one of `kinds.KINDS`.
      prefix: prefix of each name; the published DDPM file has "module.".

    Returns:
      `{name: contiguous float32 array}`.

    Raises:
      ValueError: unknown kind.
    """
    spec = kinds.of_name(kind)
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(params.get("params", params)).items():
        value = np.asarray(leaf, np.float32)
        name, shape = _published(spec, path, value.shape)
        if path[-1] == "kernel" and value.ndim == 4:
            value = np.transpose(value, (3, 2, 0, 1))
        elif path[-1] == "kernel":
            value = value.T.reshape(shape)
        state_dict[name] = np.ascontiguousarray(value)
    state_dict.update(spec.constants(state_dict))
    return {prefix + name: value for name, value in state_dict.items()}


def save_state_dict(path: str | Path, params: Mapping, kind: str, prefix: str = "") -> None:
    """Writes `to_state_dict(params, kind, prefix)` as `.pt`/`.pth` or `.safetensors`.

    Raises:
      ValueError: unknown kind or file name extension.
      ImportError: the file is a `.pt` and PyTorch is not installed.
    """
    path = Path(path)
    state_dict = to_state_dict(params, kind, prefix)
    if _is_torch(path):
        try:
            import torch
        except ImportError:
            raise ImportError(
                f"{path} needs PyTorch: install cdsde[torch], or write a .safetensors."
            ) from None
        # Copies, because arrays from JAX are read-only.
        data = io.BytesIO()
        torch.save({k: torch.from_numpy(v.copy()) for k, v in state_dict.items()}, data)
        files.write_bytes(path, data.getvalue())
    else:
        from safetensors.numpy import save

        files.write_bytes(path, save(state_dict))


def read_state_dict(path: str | Path, plain: bool = False) -> Arrays:
    """Reads the tensors of a file, floating point ones as float32, without `module.` in the names.

    The file contains a state dict, or a dict or list with one inside (averaged weights first).

    Args:
      path: the file.
      plain: refuse a `.pt` with anything else than dense tensors and plain data; False leaves such
        a file to PyTorch, where that is installed.

    Raises:
      ValueError: unknown extension; the file would execute code, is damaged or has no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path of the weights.")
    tensors = _read_pickle(path, plain) if _is_torch(path) else safetensors_file.load(path)
    names = [re.sub(r"^(module\.)+", "", name) for name in tensors]
    return dict(zip(names, _single(tensors).values(), strict=True))


def _single(tensors: dict[str, Any]) -> Arrays:
    """The tensors, floating point ones as float32; `tensors` is emptied, to hold none twice."""
    single = {}
    for name in list(tensors):
        value = np.asarray(tensors.pop(name))
        floating = jnp.issubdtype(value.dtype, jnp.floating)
        single[name] = np.asarray(value, np.float32 if floating else None)
    return single


def _read_pickle(path: Path, plain: bool) -> dict[str, Any]:
    # In either case the sizes that the file claims have been compared with its own.
    try:
        return pickle_reader.load(
            path, select=lambda content: _find_tensors(content, path, _unread)
        )
    except pickle_reader.Refused:
        if plain or importlib.util.find_spec("torch") is None:
            raise
    return _read_torch(path)


def _unread(value: Any) -> bool:
    return isinstance(value, pickle_reader.Tensor | np.ndarray)


def _read_torch(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"Unsupported \w+: [^.]*?\S+\.\S+", str(error))
        raise ValueError(
            f"{path} was refused because it holds something else than plain tensors"
            f"{f' ({reason.group(0)})' if reason else ''} and loading it could execute code: "
            "save only the state_dict, or convert it to .safetensors where you trust it."
        ) from None
    except Exception as error:  # a damaged pickle can make its reader raise anything
        raise ValueError(
            f"{path} is not a readable PyTorch file: {pickle_reader.reason(error)}; get the file "
            "again."
        ) from None
    try:
        tensors = _find_tensors(content, path, torch.is_tensor)
    except pickle_reader.Unsuitable as error:
        raise ValueError(f"{path} {error}") from None
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    return {n: (x.float() if x.is_floating_point() else x).numpy() for n, x in tensors.items()}


def _find_tensors(content: Any, path: Path, is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
    """The tensors of the state dict inside a saved object.

    Raises:
      Unsuitable: there is none.
    """

    def tensors_of(value):
        named = isinstance(value, Mapping)
        return {k: v for k, v in value.items() if is_tensor(v)} if named else {}

    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                logging.info("%s: reading the weights under '%s'", path, key)
                return _find_tensors(content[key], path, is_tensor)
    elif isinstance(content, list | tuple):
        # The DDPM trainer saves [model, optimizer, epoch, step, averaged model]: take the last.
        content = next(filter(tensors_of, reversed(content)), {})
    tensors = tensors_of(content)
    if not tensors:
        raise pickle_reader.Unsuitable("holds no named tensors: pass a file with a state_dict.")
    return tensors


def _is_torch(path: Path) -> bool:
    if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        choices = ", ".join((*TORCH_SUFFIXES, ".safetensors"))
        raise ValueError(f"{path} has the extension '{path.suffix}': choose one of {choices}.")
    return path.suffix != ".safetensors"


def _published(
    spec: kinds.Kind, path: tuple[str, ...], shape: tuple[int, ...]
) -> tuple[str, tuple]:
    """Published key and shape of the parameter at `path`."""
    module = spec.module_name(".".join(path[:-1]))
    shape = published_shape(path[-1], shape)
    if path[-1] == "kernel" and len(shape) == 2:
        shape += (1,) * spec.pointwise(module)
    return published_leaf(module, path[-1]), shape


def _build(spec: kinds.Kind, fields: Mapping[str, Any], kind: str) -> Any:
    unknown = sorted(set(fields) - set(spec.network.__dataclass_fields__))
    if unknown:
        choices = sorted(set(spec.network.__dataclass_fields__) - {"name", "parent"})
        choose = f"choose from {', '.join(choices)}" if choices else "there are none to choose"
        raise ValueError(f"kind '{kind}' has no field {_listed(unknown)}: {choose}.")
    return spec.network(**fields)


def _mismatches(state_dict: Mapping[str, Any], expected: Mapping[str, tuple]) -> str:
    """Lists the keys that file and network do not share or that differ in shape; empty if none."""
    sorts = {
        "missing": [k for k in expected if k not in state_dict],
        "unexpected": [k for k in state_dict if k not in expected],
        "ill-shaped": [
            f"{k}: file {tuple(state_dict[k].shape)}, network {shape}"
            for k, shape in expected.items()
            if k in state_dict and tuple(state_dict[k].shape) != shape
        ],
    }
    return ", ".join(f"{len(v)} {sort} ({_listed(v)})" for sort, v in sorts.items() if v)


def _contradictions(arch: Mapping[str, Any], inferred: Mapping[str, Any]) -> dict[str, tuple]:
    """`{field: (passed, inferred)}` where they differ: the probable reason of a mismatch."""

    def comparable(field, value):
        value = tuple(value) if isinstance(value, list) else value
        return sorted(value) if field.startswith("attention_") else value

    return {
        field: (arch[field], value)
        for field, value in inferred.items()
        if field in arch and comparable(field, arch[field]) != comparable(field, value)
    }


def _listed(keys: list[str]) -> str:
    more = len(keys) - LISTED_KEYS
    return ", ".join(keys[:LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")


def _supplemented(state_dict: Mapping[str, Any], spec: kinds.Kind) -> Mapping[str, Any]:
    """The state dict with the entries of the kind's supplement, unless it has any of them."""
    if spec.supplement is None:
        return state_dict
    asset = resources.files("cdsde") / "assets" / "features" / spec.supplement
    with resources.as_file(asset) as path:
        entries = _single(safetensors_file.load(path))
    return state_dict if entries.keys() & state_dict.keys() else {**state_dict, **entries}
