"""Opens the network snapshots of EDM (`network-snapshot-*.pkl`; Karras et al. 2022).

The file names the classes of the network and of its preconditioning, and the arguments they were
made by; names and shapes of the weights confirm them.
Source: github.com/NVlabs/edm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.networks import fir
from cdsde.networks.edm_blocks import MEAN
from cdsde.networks.edm_dhariwal import DhariwalUNet
from cdsde.networks.edm_song import SongUNet
from cdsde.weights.diffusers.networks import published
from cdsde.weights.formats import edm_pickle
from cdsde.weights.formats.opened import Opened
from cdsde.weights.torch import convert

NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
# EDM's arguments -> our fields.
SHARED = {
    "img_resolution": "image_size",
    "out_channels": "out_channels",
    "label_dim": "num_classes",
    "augment_dim": "augment_dim",
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "channel_mult_emb": "channel_mult_emb",
    "num_blocks": "num_blocks",
    "attn_resolutions": "attention_resolutions",
}
SONG = {
    "embedding_type": "embedding",
    "channel_mult_noise": "channel_mult_noise",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
}
ARGUMENTS = {"SongUNet": SHARED | SONG, "DhariwalUNet": SHARED}
OTHERS = {"in_channels", "dropout", "label_dropout"}  # no fields of the network
NEEDED = ("img_resolution", "in_channels", "out_channels")
LONGEST = 16  # list among the arguments


def read(path: str | Path) -> Opened:
    """A network snapshot of EDM: a SongUNet or DhariwalUNet with any of the four preconditionings.

    Args:
      path: a `.pkl`; only its averaged network, "ema", is read.

    Returns:
      The network; its `path` is that of `path_of`.

    Raises:
      ValueError: the file would execute code, is damaged, or holds another network than it says.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path of the weights.")
    snapshot = edm_pickle.load(path)
    try:
        return _opened(snapshot)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).rstrip('.')}.") from None


def _opened(snapshot: edm_pickle.Snapshot) -> Opened:
    kind, constants, network, arguments, tensors = snapshot
    table = tensors.pop("u", None) if kind == "iDDPMPrecond" else None
    path = path_of(kind, constants, table)
    fields = fields_of(network, arguments)
    weights = {name.removeprefix("model."): value for name, value in tensors.items()}
    tensors.clear()
    _check_size(fields, network, weights)
    for name, expected in filters(network, fields).items():
        found = weights.pop(name, None)
        if found is None or found.shape != expected.shape or not np.allclose(found, expected):
            raise ValueError(f"the filter {name} is not that of the argument resample_filter")
    side = 2 ** (len(_field(network, fields, "channel_mult")) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, arguments["in_channels"]), jnp.float32)
    module = NETWORKS[network](**tupled(fields))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, 1.0)
    params = convert.fit(shapes, weights, published, consume=True)
    # The network of iDDPMPrecond has twice the channels of the images, of which EDM drops half.
    images, unlabelled = arguments["in_channels"], arguments.get("label_dropout", 0) > 0
    return Opened(network, fields, path, params, channels=images, unlabelled=unlabelled)


def tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor fields, with tuples in place of lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def fields_of(network: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor fields of `NETWORKS[network]`, as plain JSON values.

    Args:
      network: "SongUNet" or "DhariwalUNet".
      arguments: those by which EDM made it; absent ones have the same default here and there.

    Raises:
      ValueError: an unknown network or argument, or an argument of another type.
    """
    if network not in NETWORKS:
        raise ValueError(f"its network is a {network}; known are {', '.join(NETWORKS)}")
    names = ARGUMENTS[network]
    if unknown := sorted(map(str, set(arguments) - set(names) - OTHERS)):
        raise ValueError(f"its {network} has the argument {', '.join(unknown)}, which is not known")
    if missing := [name for name in NEEDED if name not in arguments]:
        raise ValueError(f"its {network} lacks the argument {', '.join(missing)}")
    for name, value in arguments.items():
        if name == "dropout":
            continue
        if name == "label_dropout":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"its {network} has the argument {name}={str(value)[:40]}")
            continue
        default = getattr(NETWORKS[network], names.get(name, "image_size"))
        values = value if isinstance(default, tuple) else [value]
        number = int | float if name == "resample_filter" else int
        plain = isinstance(values, list | tuple) and len(values) <= LONGEST
        if isinstance(default, str):
            plain = isinstance(value, str)
        elif plain:
            least = 0 if name in ("label_dim", "augment_dim", "resample_filter") else 1
            plain = all(isinstance(n, number) and least <= n < 2**31 for n in values)
        if name == "resample_filter":
            plain = plain and len(value) % 2 == 0 and sum(value) > 0
        if not plain:
            raise ValueError(f"its {network} has the argument {name}={str(value)[:40]}")
    fields = {names[name]: value for name, value in arguments.items() if name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def path_of(
    kind: str, constants: Mapping[str, Any], table: np.ndarray | None = None
) -> dict[str, Any]:
    """The fields of `diffusion.paths.Path` of a preconditioning, as plain JSON values.

    Args:
      kind: one of `PRECONDITIONINGS`.
      constants: EDM's attributes of the preconditioning; absent ones have EDM's defaults.
      table: the buffer u of iDDPMPrecond, decreasing noise levels down to 0.

    Raises:
      ValueError: unknown kind, constants that are no numbers, another table.
    """

    def number(name: str, default: float) -> float:
        value = constants.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise ValueError(f"its {kind} has {name}={str(value)[:40]}, which is no such constant")
        return value

    path: dict[str, Any] = {"data": [-1, 1]}
    for end, without in (("sigma_min", 0), ("sigma_max", math.inf)):
        known = constants.get(end) not in (None, without)
        path[end] = number(end, 0) if known else None
    if kind == "EDMPrecond":
        time = {"kind": "log_sigma", "factor": 0.25}
        data = number("sigma_data", 0.5)
        return {**path, "state": "edm", "output": "F", "time": time, "sigma_data": data}
    if kind == "VEPrecond":  # D = x + σ F, so F is -ε
        time = {"kind": "log_sigma", "unit": 2}
        return {**path, "state": "ve", "output": "minus_eps", "time": time}
    if kind == "VPPrecond":
        slope, low = number("beta_d", 19.9), number("beta_min", 0.1)
        time = {"kind": "vp", "beta_min": low, "beta_max": low + slope}
        time["scale"] = number("M", 1000) - 1
    elif kind == "iDDPMPrecond":
        time = {"kind": "nearest", "sigmas": _levels(table)[::-1].tolist()}
    else:
        raise ValueError(f"its 'ema' is a {kind}; known are {', '.join(PRECONDITIONINGS)}")
    return {**path, "state": "vp", "output": "eps", "time": time}


def _levels(table: np.ndarray | None) -> np.ndarray:
    """The noise levels above 0 of iDDPM's table, float64, decreasing."""
    u = np.zeros(0) if table is None else np.asarray(table, np.float64)
    if u.ndim != 1 or len(u) < 2 or not np.isfinite(u).all() or u[-1] or (np.diff(u) >= 0).any():
        raise ValueError("its iDDPMPrecond has no table u of noise levels that fall to 0")
    return u[:-1]


def filters(network: str, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The filters that EDM keeps with the weights: published names to `[1, 1, L, L]`."""
    taps = fields.get("resample_filter", list(MEAN)) if network == "SongUNet" else list(MEAN)
    kernel = fir.kernel_of(taps)[None, None]
    levels = len(_field(network, fields, "channel_mult"))
    sizes = [f"{fields['image_size'] >> level}" for level in range(levels)]
    parts = [f"enc.{n}x{n}_down.{part}" for n in sizes[1:] for part in ("conv0", "skip")]
    parts += [f"dec.{n}x{n}_up.{part}" for n in sizes[:-1] for part in ("conv0", "skip")]
    aux = {"skip": "aux_down", "residual": "aux_residual"}.get(fields.get("encoder", ""))
    parts += [f"enc.{n}x{n}_{aux}" for n in sizes[1:] if aux]
    parts += [f"dec.{n}x{n}_aux_up" for n in sizes[:-1] if fields.get("decoder") == "skip"]
    return {f"{part}.resample_filter": kernel for part in parts}


def _field(network: str, fields: Mapping[str, Any], name: str) -> Any:
    return fields.get(name, getattr(NETWORKS[network], name))


def _check_size(fields: Mapping[str, Any], network: str, weights: Mapping[str, Any]) -> None:
    """Keeps arguments that no weight confirms from costing time or memory."""

    def field(name: str) -> Any:
        return _field(network, fields, name) if hasattr(NETWORKS[network], name) else 1

    width = field("channels") * field("channel_mult_noise")
    expected = (field("channels") * field("channel_mult_emb"), width)
    found = getattr(weights.get("map_layer0.weight"), "shape", None)
    if found != expected:
        raise ValueError(f"map_layer0.weight has the shape {found}, the arguments say {expected}")
    levels = len(field("channel_mult"))
    count, side = field("num_blocks"), field("image_size")
    if not levels or count * levels > len(weights) or side % 2 ** (levels - 1):
        raise ValueError(
            f"{len(weights)} tensors do not make {levels} levels of {count} blocks for images of "
            f"{side}²"
        )
