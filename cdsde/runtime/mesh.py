"""Devices: one mesh, the placement of arrays on it, and transfers between host and devices.

The mesh has two axes, `data` and `fsdp`. Batches are split over both, so every device works on its
own images. Networks are replicated over `data`. The training state of a network (parameters,
average, moments) is split over `fsdp` and gathered for each step; with fsdp = 1 this is plain data
parallelism. jit inserts the collectives, for any number of devices.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cdsde.runtime.padding import pad

DATA, FSDP = "data", "fsdp"
SMALL = 2**12  # arrays with fewer values are replicated


def connect(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of this program. It must run before any other use of JAX.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" where JAX gets it from the cluster.
      processes, process: number of processes, and index of this one; not used with "auto".

    Raises:
      ValueError: the arguments do not fit together, or JAX recognises no cluster.
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
            f"--coordinator={coordinator} needs --processes=N and --process=0..N-1, but they are "
            f"{processes} and {process}"
        )
    jax.distributed.initialize(coordinator, processes, process)


def make_mesh(devices=None, fsdp: int = 1) -> Mesh:
    """Builds a mesh over `devices` (default: all devices of all processes).

    The axes are Auto: jax.make_mesh's default (Explicit) rejects plain code such as `z @ z.T` over
    a sharded batch.

    Args:
      devices: the devices, in the order of the mesh.
      fsdp: size of the axis `fsdp`, the minor axis, so that neighbours share a network. The axis
        `data` has len(devices) / fsdp.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise ValueError(
            f"config.mesh.fsdp is {fsdp}, which does not divide the {len(devices)} devices; "
            "choose a divisor"
        )
    shape = (len(devices) // fsdp, fsdp)
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (DATA, FSDP), devices=devices, axis_types=axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with the full array on every device."""
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding with the leading axis split over the mesh."""
    return NamedSharding(mesh, P((DATA, FSDP)))


def network_sharded(tree, mesh: Mesh):
    """The shardings of a tree of parameters or optimiser state, as a tree.

    The longest axis that `fsdp` divides is split over it; small arrays are replicated.
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
    """Pads arrays `[n, ...]` with their last row to a multiple of the mesh's size."""
    return pad(rows, round_up(len(jax.tree.leaves(rows)[0]), mesh))


def put_batch(batch, mesh: Mesh):
    """Moves this process's rows (a tree of arrays `[b, ...]`) into global arrays over the mesh.

    Raises:
      ValueError: b is not a multiple of the number of this process's devices.
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
    """Copies host values to every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def to_host(tree, mesh: Mesh):
    """NumPy copies of arrays on the mesh, with any sharding, in every process."""
    copies = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(np.asarray, copies)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array split over the mesh, in order."""
    shards = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0 if shard.index else 0
        shards[start] = np.asarray(shard.data)
    return np.concatenate([shards[k] for k in sorted(shards)])


def share(count: int) -> range:
    """Indices of the items of `count` on which this process works.

    With fewer items than processes, every process works on all, so that each has a result.
    """
    if count < jax.process_count():
        return range(count)
    return range(jax.process_index(), count, jax.process_count())


def gather_rows(rows: np.ndarray, positions) -> np.ndarray:
    """Gathers the rows of all processes, sorted by position, in every process.

    The rows travel as bytes, because JAX would round float64 to float32.

    Args:
      rows: `[n, ...]`, with the same dtype and row shape in all processes; n may be 0.
      positions: `[n]`, positions among all rows; of rows with the same position one is kept.

    Returns:
      `[N, ...]`, with the dtype of `rows`.
    """
    rows, positions = np.ascontiguousarray(rows), np.asarray(positions, np.int64)
    if jax.process_count() == 1:
        return rows[np.argsort(positions)]
    lengths = multihost_utils.process_allgather(np.int32(len(rows)))
    raw = np.concatenate([_as_bytes(positions), _as_bytes(rows)], axis=1)
    padded = np.zeros((int(lengths.max()), raw.shape[1]), np.uint8)
    padded[: len(raw)] = raw
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    raw = np.concatenate([part[:n] for part, n in zip(gathered, lengths, strict=True)])
    _, first = np.unique(raw[:, :8].copy().view(np.int64)[:, 0], return_index=True)
    return raw[first, 8:].copy().view(rows.dtype).reshape(len(first), *rows.shape[1:])


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    width = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    return np.frombuffer(rows.tobytes(), np.uint8).reshape(len(rows), width)


def round_up(n: int, mesh: Mesh) -> int:
    """The smallest multiple of the mesh's size that is at least n."""
    return -(-n // mesh.size) * mesh.size


def of_first_process(value: bool) -> bool:
    """The first process's value, in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def in_every_process(value: bool) -> bool:
    """Whether the value is true in all processes; each of them must call it."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def barrier(name: str) -> None:
    """Waits until every process reaches this call; returns at once with one process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
