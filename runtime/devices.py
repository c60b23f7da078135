"""The devices that an engine runs on, from an option such as `model=4`.

The one idea: a host without accelerators creates as many CPU devices as the option requests, so that a laptop
runs the same mesh as a pod.
"""

import contextlib
from typing import Any

import jax
from jax.sharding import Mesh

from ..model.sharding import create_mesh
from .device.processes import join
from .options import Membership, parse_mesh


def claim_mesh(mesh: str | None, membership: Membership | None = None) -> Mesh:
    """The requested mesh, on the devices that JAX sees, or on those of several processes.

    To create CPU devices, it must be called before anything else uses JAX.

    Args:
      mesh: such as `model=4`; None is one device, or with a membership all devices of all processes.

    Raises:
      ConfigError: an invalid mesh, too few devices, or processes that do not connect.
    """
    shards = parse_mesh(mesh)
    if membership:
        join(membership, shards if mesh else None)
        each = shards // membership.processes if mesh else jax.local_device_count()
        return create_mesh(each * membership.processes, _first_of_each(each))
    if shards > 1:
        with contextlib.suppress(RuntimeError):  # JAX is in use already, so its devices cannot be changed
            jax.config.update("jax_num_cpu_devices", shards)
    return create_mesh(shards)


def _first_of_each(count: int) -> list[Any]:
    """The first devices of every process, so that each has an equal part of the mesh."""
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return [device for process in sorted(by_process) for device in by_process[process][:count]]
