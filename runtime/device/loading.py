"""Parameters that another thread loads while the steps are traced and compiled, which needs shapes only.

Reading and placing weights is mostly work without the interpreter lock, tracing is mostly work with it.

The one idea: whoever waits for the parameters is the only one that holds them. So each of them is freed as
soon as it is laid out for the kernels (see `Skeleton.flatten`), and memory holds the weights once.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ...model.config import ModelConfig
from ...model.parameters import Quantization, stored_type
from ...model.quantize import quantization_of
from ...model.sharding import placements
from ...model.transformer import Leaf, Skeleton
from ..threads import Background
from .memory import free_in_all

log = logging.getLogger(__name__)

Parameters = Mapping[str, jax.Array]


@dataclass(frozen=True, slots=True)
class Loading:
    """Parameters that are being loaded, or are there.

    Attributes:
      dtype: of the computation. quantization: of linear weights.
      free: bytes of the devices that will be free when all parameters are there.
      leaves: waits for them, once, and lays them out as a network's flat tuple (see `Skeleton.flatten`);
        raises what their loading raised.
    """

    dtype: jnp.dtype
    quantization: Quantization | None
    free: int
    leaves: Callable[[Skeleton], tuple[Leaf, ...]]


def start_loading(
    config: ModelConfig,
    dtype: jnp.dtype,
    quantization: Quantization | None,
    mesh: Mesh,
    load: Callable[[], dict[str, jax.Array]],
    host: int | None = None,
) -> Loading:
    """Starts to load parameters onto a mesh of this process's devices; `host`: see `free_in_all`."""
    free = free_in_all(mesh.local_devices, host)
    size = sum(
        prod(where.shape) * jnp.dtype(stored_type(name, quantization) or dtype).itemsize
        for name, where in placements(config, mesh.size, quantization).items()
    )
    log.info("weights: %s, %.2f GB", quantization or dtype, size / 1e9)
    loaded = Background("loading", load)
    return Loading(
        dtype,
        quantization,
        max(1, free - size) if free else 0,
        lambda skeleton: skeleton.flatten(loaded.result()),
    )


def already_loaded(parameters: Parameters, mesh: Mesh) -> Loading:
    """Parameters that are there; their mapping stays as it is."""
    left = [dict(parameters)]
    free = free_in_all(mesh.local_devices)
    return Loading(
        parameters["norm"].dtype,
        quantization_of(parameters),
        free,
        lambda skeleton: skeleton.flatten(left.pop()),
    )


def laid_out(
    leaves: tuple[Leaf, ...], dtype: jnp.dtype, quantization: Quantization | None, mesh: Mesh
) -> Loading:
    """Parameters that another engine holds, as its network's flat tuple."""
    return Loading(dtype, quantization, free_in_all(mesh.local_devices), lambda skeleton: leaves)
