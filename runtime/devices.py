"""From a wish such as `model=4` to devices: which ones an engine runs on.

The one idea: a host without accelerators has as many CPU devices as the wish asks for, so that a laptop runs
what a pod will, mesh and all.
"""

import contextlib
import re

import jax
from jax.sharding import Mesh

from ..model.errors import ConfigError
from ..model.sharding import create_mesh


def parse_mesh(wish: str | None) -> int:
    """The number of devices that a model is divided among; None means one.

    Raises:
      ConfigError: not of the form `model=N` with N at least 1.
    """
    if wish is None:
        return 1
    found = re.fullmatch(r"model=([1-9]\d{0,4})", wish)
    if not found:
        raise ConfigError(f"mesh is {wish!r}; expected model=N, e.g. model=4")
    return int(found[1])


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
