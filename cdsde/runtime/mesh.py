"""Devices: one mesh, where arrays lie on it, and how rows get there and back.

The mesh has two axes, `data` and `fsdp`. Batches are split over both, so every device works on its
own images. Networks are replicated over `data`; over `fsdp` what training keeps of them
(parameters, average, moments) is split, and gathered for the step. With fsdp = 1 that is plain data
parallelism. jit inserts the collectives, on one device as on many.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cdsde.runtime.padding import pad

DATA, FSDP = "data", "fsdp"
SMALL = 2**12  # arrays of fewer values are not worth splitting


def connect(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes of this program; before anything else is asked of JAX.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" where the cluster tells JAX.
      processes, process: how many there are, and which this is; not with "auto".

    Raises:
      ValueError: the three do not fit together, or there is no cluster that tells.
    """
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--coordinator=auto found no cluster ({str(error).splitlines()[0]}); give "
                "--coordinator=HOST:PORT --processes=N --process=I"
            ) from error
        return
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"--coordinator={coordinator} needs --processes=N and --process=0..N-1, and they are "
            f"{processes} and {process}"
        )
    jax.distributed.initialize(coordinator, processes, process)


def make_mesh(devices=None, fsdp: int = 1) -> Mesh:
    """A mesh over `devices` (default: all devices of all processes).

    The axes are Auto: under jax.make_mesh's default (Explicit) plain code such as `z @ z.T` over
    a sharded batch is rejected.

    Args:
      devices: the devices, in the order of the mesh.
      fsdp: size of the axis `fsdp`, the faster one: neighbours share a network. The axis `data`
        is what it leaves.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise ValueError(
            f"config.mesh.fsdp is {fsdp}, which does not divide the {len(devices)} devices that "
            "there are; choose a divisor"
        )
    shape = (len(devices) // fsdp, fsdp)
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (DATA, FSDP), devices=devices, axis_types=axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the mesh."""
    return NamedSharding(mesh, P((DATA, FSDP)))


def network_sharded(tree, mesh: Mesh):
    """Where each array of a network, or of what its optimiser keeps, lies: a tree of shardings.

    The longest axis that `fsdp` divides is split over it; small arrays are everywhere.
    """
    parts = mesh.shape[FSDP]

    def place(leaf):
        fits = [n for n in leaf.shape if n % parts == 0]
        if parts == 1 or leaf.size < SMALL or not fits:
            return replicated(mesh)
        axis = leaf.shape.index(max(fits))
        return NamedSharding(mesh, P(*[None] * axis, FSDP))

    return jax.tree.map(place, tree)


def pad_rows(rows, mesh: Mesh):
    """Arrays `[n, ...]` with the last row repeated until they divide over the mesh."""
    return pad(rows, round_up(len(jax.tree.leaves(rows)[0]), mesh))


def put_batch(batch, mesh: Mesh):
    """This process's rows (a tree of numpy arrays `[b, ...]`) → global arrays split over the mesh.

    Raises:
      ValueError: the rows do not divide by this process's devices.
    """
    local = max(1, len(mesh.local_devices))
    for leaf in jax.tree.leaves(batch):
        if len(leaf) % local:
            raise ValueError(
                f"a batch of {len(leaf)} rows does not divide over this process's {local} devices; "
                f"choose a batch size that is a multiple of {mesh.size}"
            )
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_replicated(tree, mesh: Mesh):
    """The same host values on every device."""
    return jax.device_put(tree, replicated(mesh))


def to_host(tree, mesh: Mesh):
    """NumPy copies of arrays on the mesh, however they are split, in every process."""
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(np.asarray, whole)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array split over the mesh, in order."""
    shards = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0 if shard.index else 0
        shards[start] = np.asarray(shard.data)
    return np.concatenate([shards[k] for k in sorted(shards)])


def share(count: int) -> range:
    """Which of `count` items this process works on; all of them where there are fewer than
    processes, so that no process has nothing to tell."""
    if count < jax.process_count():
        return range(count)
    return range(jax.process_index(), count, jax.process_count())


def gather_rows(rows: np.ndarray, at) -> np.ndarray:
    """The rows that all processes have, sorted by position, in every process.

    Bit for bit: rows travel as bytes, since JAX would round float64 to float32.

    Args:
      rows: `[n, ...]`, of one dtype and row shape in all processes; n may be 0.
      at: `[n]` positions in the whole; what several processes have is taken once.
    """
    rows, at = np.ascontiguousarray(rows), np.asarray(at, np.int64)
    if jax.process_count() == 1:
        return rows[np.argsort(at)]
    lengths = multihost_utils.process_allgather(np.int32(len(rows)))
    raw = np.concatenate([_as_bytes(at), _as_bytes(rows)], axis=1)
    padded = np.zeros((int(lengths.max()), raw.shape[1]), np.uint8)
    padded[: len(raw)] = raw
    everyone = np.asarray(multihost_utils.process_allgather(padded))
    raw = np.concatenate([part[:n] for part, n in zip(everyone, lengths, strict=True)])
    _, first = np.unique(raw[:, :8].copy().view(np.int64)[:, 0], return_index=True)
    return raw[first, 8:].copy().view(rows.dtype).reshape(len(first), *rows.shape[1:])


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    width = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    return np.frombuffer(rows.tobytes(), np.uint8).reshape(len(rows), width)


def round_up(n: int, mesh: Mesh) -> int:
    """The smallest multiple of the mesh's size that is at least n."""
    return -(-n // mesh.size) * mesh.size


def barrier(name: str) -> None:
    """Wait until every process is here; nothing to wait for with one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
