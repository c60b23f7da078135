"""Loads a store's weights directly onto a mesh: Orbax reads each device's slabs, and the device joins them.

A device reads only its own share if shares are runs of whole slabs. They are for every number of devices that
divides the slabs (see `slabs.py`), also with padded and repeated heads. A tensor that does not divide evenly,
such as a vocabulary of 32,002 on four devices, is read whole and then placed.

The one idea: one group at a time, so that memory holds at most one layer in addition to the shares.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ...model.sharding import AXIS, Placement, over_shares, place
from .manifest import TensorRecord
from .orbax_group import restore

_COPIES = "copies"


def restore_group(
    folder: Path,
    records: Mapping[str, TensorRecord],
    placements: Mapping[str, Placement],
    mesh: Mesh,
    dtypes: Mapping[str, np.dtype],
) -> Iterator[tuple[str, jax.Array, bool]]:
    """Restores one group's parameters, in the order of `records`: name, array, whether it is finite.

    Args:
      records: from the manifest, by name in the group. placements: of the parameters.
      dtypes: of the arrays.
    """
    arguments = {n: _restore_args(records[n], placements[n], mesh, dtypes[n]) for n in records}
    found = restore(folder, arguments)
    for name, record in records.items():
        values, placement = found.pop(name), placements[name]
        if isinstance(values, np.ndarray):
            whole = record.whole(values).astype(dtypes[name])
            yield name, place(whole, placement, mesh), bool(np.isfinite(whole.astype(np.float32)).all())
        else:
            slabs = _relabelled(values, mesh)
            joined, broken = _joiner(mesh, placement)(slabs)
            yield name, joined, not int(broken)


def _restore_args(record: TensorRecord, placement: Placement, mesh: Mesh, dtype: np.dtype) -> Any:
    """How Orbax restores a tensor: as slabs on their devices, or whole on the host."""
    shares = mesh.size // placement.copies
    slabs = slabs_on_mesh(record, placement)
    if record.axis is None or record.axis != placement.axis or slabs is None or slabs % shares:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    grid = np.array(mesh.devices).reshape(shares, placement.copies)
    sharding = NamedSharding(Mesh(grid, (AXIS, _COPIES), axis_types=(AxisType.Auto,) * 2), P(AXIS))
    shape = (slabs, *record.slab_shape)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, dtype=dtype, strict=False)


def slabs_on_mesh(record: TensorRecord, placement: Placement) -> int | None:
    """The number of slabs of the padded tensor, each copy counted once; None if it does not divide evenly."""
    if record.axis is None or record.slabs == 1:
        return None
    thickness = record.shape[record.axis] // record.slabs
    length = placement.shape[record.axis] // placement.copies
    return None if length % thickness else length // thickness


def _relabelled(values: jax.Array, mesh: Mesh) -> jax.Array:
    """The same shares on the mesh's one axis, in which copies are separate shares; no data moves."""
    parts = [shard.data for shard in values.addressable_shards]
    shape = (parts[0].shape[0] * mesh.size, *values.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, P(AXIS)), parts)


@cache
def _joiner(mesh: Mesh, placement: Placement) -> Any:
    """Joins every device's slabs on that device; also counts the devices with a number that is not finite."""
    axis = placement.axis
    assert axis is not None, "only divided parameters have slabs"

    def share(slabs: jax.Array) -> tuple[jax.Array, jax.Array]:
        split = jnp.moveaxis(slabs, 0, axis)
        joined = split.reshape(*split.shape[:axis], -1, *split.shape[axis + 2 :])
        broken = ~jnp.isfinite(joined.astype(jnp.float32)).all()
        return joined, jax.lax.psum(broken.astype(jnp.int32), AXIS)

    return jax.jit(over_shares(share, mesh, (P(AXIS),), (placement.spec, P())))
