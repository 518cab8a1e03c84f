"""Devices: one mesh, where arrays lie on it, and how rows get there and back.

Every program uses the same two placements: batches are split over the mesh's `data` axis,
parameters are replicated. jit then inserts the collectives, on one device as on many.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"


def make_mesh(devices=None) -> Mesh:
    """A one-axis mesh over `devices` (default: all devices of all processes).

    The axis is Auto: under jax.make_mesh's default (Explicit) plain code such as `z @ z.T` over
    a sharded batch is rejected.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the mesh."""
    return NamedSharding(mesh, P(DATA))


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


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array split over the mesh, in order."""
    shards = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0 if shard.index else 0
        shards[start] = np.asarray(shard.data)
    return np.concatenate([shards[k] for k in sorted(shards)])


def round_up(n: int, mesh: Mesh) -> int:
    """The smallest multiple of the mesh's size that is at least n."""
    return -(-n // mesh.size) * mesh.size


def barrier(name: str) -> None:
    """Wait until every process is here; nothing to wait for with one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
