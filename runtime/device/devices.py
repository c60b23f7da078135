"""From a wish such as `model=4` to devices: which ones an engine runs on.

The one idea: a host without accelerators has as many CPU devices as the wish asks for, so that a laptop runs
what a pod will, mesh and all.
"""

import contextlib
from typing import Any

import jax
from jax.sharding import Mesh

from ...model.sharding import create_mesh
from ..options import Membership, parse_mesh
from .processes import join


def claim_mesh(wish: str | None, membership: Membership | None = None) -> Mesh:
    """The mesh that is wished for, of the devices that JAX sees, or of those of several processes.

    Must come before anything else uses JAX, where CPU devices are to be made. Several processes without a
    wish take all devices that they have together.

    Raises:
      ConfigError: no such mesh, not so many devices, or processes that do not come together.
    """
    shards = parse_mesh(wish)
    if membership:
        join(membership, shards if wish else None)
        each = shards // membership.processes if wish else jax.local_device_count()
        return create_mesh(each * membership.processes, _first_of_each(each))
    if shards > 1:
        with contextlib.suppress(RuntimeError):  # JAX is in use already: what is there must do
            jax.config.update("jax_num_cpu_devices", shards)
    return create_mesh(shards)


def _first_of_each(count: int) -> list[Any]:
    """The first devices of every process, so that each holds the same part of the mesh."""
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return [device for process in sorted(by_process) for device in by_process[process][:count]]
