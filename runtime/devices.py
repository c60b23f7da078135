"""From a wish such as `model=4` to devices: which ones an engine runs on.

The one idea: a host without accelerators has as many CPU devices as the wish asks for, so that a laptop runs
what a pod will, mesh and all.
"""

import contextlib

import jax
from jax.sharding import Mesh

from ..model.sharding import create_mesh
from .wishes import parse_mesh


def claim_mesh(wish: str | None) -> Mesh:
    """The mesh that is wished for, of the devices that JAX sees.

    Must come before anything else uses JAX, where CPU devices are to be made.

    Raises:
      ConfigError: no such mesh, or not so many devices.
    """
    shards = parse_mesh(wish)
    if shards > 1:
        with contextlib.suppress(RuntimeError):  # JAX is in use already: what is there must do
            jax.config.update("jax_num_cpu_devices", shards)
    return create_mesh(shards)
