"""Writes a compiled function of images for programs that have JAX and NumPy alone (`jax.export`).

The file is NumPy's `.npz`. It holds the function as StableHLO for each platform, the compiler's
options there, and the arrays that the function takes, which all platforms share. This program
translates with it (flatbuffers must be installed, with which JAX reads what it exported):

    import zlib
    import jax
    import numpy as np
    from jax import export

    file, platform = np.load("translation.npz"), jax.default_backend().replace("gpu", "cuda")
    function = export.deserialize(bytearray(file[f"function/{platform}"]))
    options = dict(file[f"options/{platform}"].tolist())
    arrays = {name: file[name] for name in file.files if name.startswith("array/")}
    images = np.load("images.npy")  # uint8 [B, S, S, 3], any B
    ids = np.uint32([zlib.crc32(str(j).encode()) for j in range(len(images))])  # of their names
    translate = jax.jit(function.call, compiler_options=options)
    np.save("results.npy", translate(arrays, images, ids, np.uint32(0)))  # the seed is 0

Each platform has a function of its own, because the gradients of convolutions and normalisations
are other formulas on CPUs (`lax.platform_dependent`): one function for all platforms would leave
that choice to a later pass of the compiler, and would not round as cdsde.translate does. The arrays
are arguments, as there: as constants they would be folded into the program, which rounds otherwise
and takes long.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from cdsde.data import to_uint8
from cdsde.runtime import compiler, files

PLATFORMS = ("cpu", "cuda", "tpu")


def save(path: str | Path, function: Callable, arrays: Mapping[str, np.ndarray], size: int) -> None:
    """Writes a function of images, its arrays, and the options of its compilation.

    Args:
      path: the file, `.npz`.
      function: `(arrays, images, ids, seed) -> y`: images uint8 `[B, S, S, 3]`, ids uint32 `[B]`,
        seed uint32, y float32 `[B, S, S, 3]`. The function in the file returns y as uint8, rounded
        as `to_uint8` does.
      arrays: the arrays by name; the names in the file are those with `array/` before them.
      size: S.

    Raises:
      ValueError: the path has another extension, or flatbuffers is not installed.
      OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"config.export.path={path} must end in .npz, NumPy's format of the file")
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError(
            "config.export.format is 'stablehlo', and jax.export writes with flatbuffers: pip "
            "install 'cdsde[export]'"
        )
    # What JAX makes of them when they are arguments: 32 bits.
    arrays = {f"array/{name}": np.asarray(jnp.asarray(x)) for name, x in arrays.items()}
    first = first_of_each_level()

    def to_pictures(arrays, images, ids, seed):
        y = function({k.removeprefix("array/"): x for k, x in arrays.items()}, images, ids, seed)
        return jnp.searchsorted(first, y, side="right").astype(jnp.uint8)

    (batch,) = export.symbolic_shape("b")
    shapes = (
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()},
        jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8),
        jax.ShapeDtypeStruct((batch,), np.uint32),
        jax.ShapeDtypeStruct((), np.uint32),
    )
    contents = dict(arrays)
    for platform in PLATFORMS:
        exported = export.export(jax.jit(to_pictures), platforms=[platform])(*shapes)
        contents[f"function/{platform}"] = np.frombuffer(exported.serialize(), np.uint8)
        options = compiler.options(platform)
        contents[f"options/{platform}"] = np.array(list(options.items()), str).reshape(-1, 2)
    with files.replacing(path, sum(x.nbytes for x in contents.values())) as temporary:
        np.savez(temporary, allow_pickle=False, **contents)


def first_of_each_level() -> np.ndarray:
    """The least y that `to_uint8` maps to 1 … 255, float32 `[255]`.

    A comparison is exact on every platform. The formula of `to_uint8` is not, since compilers join
    its product and its sum into one operation with one rounding.
    """
    levels = np.arange(1, 256)
    below, first = np.full(255, -1, np.float32), np.full(255, 1, np.float32)
    while (np.nextafter(below, first) < first).any():
        middle = ((below.astype(np.float64) + first) / 2).astype(np.float32)
        reached = to_uint8(middle.reshape(-1, 1, 1)).ravel() >= levels
        below, first = np.where(reached, below, middle), np.where(reached, middle, first)
    return first
