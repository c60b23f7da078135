"""Parameters that another thread loads while the steps are traced and compiled, which needs shapes only.

Reading and placing weights is mostly work without the interpreter lock, tracing is mostly work with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ...model.config import ModelConfig
from ...model.parameters import Quantization, stored_type
from ...model.sharding import placements
from ..threads import Background
from .memory import free_in_all

Parameters = Mapping[str, jax.Array]


@dataclass(frozen=True, slots=True)
class Loading:
    """Parameters that are being loaded.

    Attributes:
      dtype, quantization: as in the parameters' mapping.
      free: bytes of the devices that will be free when all parameters are there.
      wait: waits for them, once; raises what their loading raised.
    """

    dtype: jnp.dtype
    quantization: Quantization | None
    free: int
    wait: Callable[[], Parameters]


def start_loading(
    config: ModelConfig,
    dtype: jnp.dtype,
    quantization: Quantization | None,
    mesh: Mesh,
    load: Callable[[], Parameters],
) -> Loading:
    """Starts to load parameters onto a mesh of this process's devices."""
    free = free_in_all(mesh.local_devices)
    size = sum(
        prod(where.shape) * jnp.dtype(stored_type(name, quantization) or dtype).itemsize
        for name, where in placements(config, mesh.size, quantization).items()
    )
    return Loading(
        dtype, quantization, max(1, free - size) if free else 0, Background("loading", load).result
    )
