"""A store's weights straight onto a mesh: Orbax reads each device's slabs, and the device joins them.

Nothing of another device's share is read where shares are runs of whole slabs, which they are for every
number of devices that divides the slabs (see `slabs.py`), padded heads and repeated ones included. A tensor
that does not come out even, such as a vocabulary of 32,002 on four devices, is read whole and then placed.

The one idea: a group at a time, so that what is in memory beside the shares is one layer at most.
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
    """Restores one group's parameters, in the order of `records`: name, array, whether all of it is finite.

    Args:
      records: what the manifest says, by name in the group. placements: where each is to lie.
      dtypes: of the arrays.
    """
    wishes = {name: _wish(records[name], placements[name], mesh, dtypes[name]) for name in records}
    found = restore(folder, wishes)
    for name, record in records.items():
        values, placement = found.pop(name), placements[name]
        if isinstance(values, np.ndarray):
            whole = record.whole(values).astype(dtypes[name])
            yield name, place(whole, placement, mesh), bool(np.isfinite(whole.astype(np.float32)).all())
        else:
            slabs = _relabelled(values, mesh)
            joined, broken = _joiner(mesh, placement)(slabs)
            yield name, joined, not int(broken)


def _wish(record: TensorRecord, placement: Placement, mesh: Mesh, dtype: np.dtype) -> Any:
    """What Orbax is to make of a tensor: slabs on their devices, or the whole on the host."""
    shares = mesh.size // placement.copies
    slabs = slabs_on_mesh(record, placement)
    if record.axis is None or record.axis != placement.axis or slabs is None or slabs % shares:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    grid = np.array(mesh.devices).reshape(shares, placement.copies)
    sharding = NamedSharding(Mesh(grid, (AXIS, _COPIES), axis_types=(AxisType.Auto,) * 2), P(AXIS))
    shape = (slabs, *record.slab_shape)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, dtype=dtype, strict=False)


def slabs_on_mesh(record: TensorRecord, placement: Placement) -> int | None:
    """How many slabs the padded tensor has, each copy counted once; None where they do not come out even."""
    if record.axis is None or record.slabs == 1:
        return None
    thickness = record.shape[record.axis] // record.slabs
    length = placement.shape[record.axis] // placement.copies
    return None if length % thickness else length // thickness


def _relabelled(values: jax.Array, mesh: Mesh) -> jax.Array:
    """The same shares on the mesh's one axis, in which copies are shares of their own; nothing moves."""
    parts = [shard.data for shard in values.addressable_shards]
    shape = (parts[0].shape[0] * mesh.size, *values.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, P(AXIS)), parts)


@cache
def _joiner(mesh: Mesh, placement: Placement) -> Any:
    """Joins every device's slabs, there; also says how many devices met a number that is not finite."""
    axis = placement.axis
    assert axis is not None, "only what is divided lies in slabs"

    def share(slabs: jax.Array) -> tuple[jax.Array, jax.Array]:
        split = jnp.moveaxis(slabs, 0, axis)
        joined = split.reshape(*split.shape[:axis], -1, *split.shape[axis + 2 :])
        broken = ~jnp.isfinite(joined.astype(jnp.float32)).all()
        return joined, jax.lax.psum(broken.astype(jnp.int32), AXIS)

    return jax.jit(over_shares(share, mesh, (P(AXIS),), (placement.spec, P())))
