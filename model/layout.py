"""How linear weights lie in memory for the kernels that read them.

A checkpoint's weights are `[inputs, outputs]`. Some backends read another order, which is made once, when
the engine is built. What a backend cannot hold in its own order stays as it is; its kernel sees that by the
shape.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from .kernels.panels import PANEL, QUAD, pack, pack_int8, pack_transposed
from .sharding import Placement


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout for a backend of `linear` or, with `int8`, of `int8_linear`."""

    backend: str
    shards: int
    int8: bool

    def place(self, where: Placement, *, transposed: bool = False) -> Placement:
        """The placement of a weight in this layout; `transposed`: it is stored as `[outputs, inputs]`."""
        if self.backend == "transposed":
            return where.transposed()
        straight = where.transposed() if transposed else where
        return _in_panels(straight, self.int8) if self._has_panels(straight) else where

    def apply(self, weight: jax.Array, where: Placement, *, transposed: bool = False) -> jax.Array:
        """A weight, placed at `where`, in this layout."""
        if self.backend == "transposed":
            return weight.T
        placed = self.place(where, transposed=transposed)
        if placed == where:
            return weight
        change = pack_int8 if self.int8 else pack_transposed if transposed else pack
        return _on_its_devices(change, weight, placed)

    def _has_panels(self, where: Placement) -> bool:
        """Whether each device's share is a whole number of panels."""
        inputs, outputs = (
            size // (self.shards if axis == where.axis else 1) for axis, size in enumerate(where.shape)
        )
        whole = outputs % PANEL == 0 and (where.axis != 0 or not self.int8 or inputs % QUAD == 0)
        return self.backend == "native" and whole


def _in_panels(where: Placement, int8: bool) -> Placement:
    inputs, outputs = where.shape
    shape = (outputs // PANEL, -(-inputs // QUAD), PANEL, QUAD) if int8 else (outputs // PANEL, inputs, PANEL)
    return replace(where, shape=shape, axis=None if where.axis is None else 1 - where.axis)


def _on_its_devices(
    change: Callable[[jax.Array], jax.Array], weight: jax.Array, where: Placement
) -> jax.Array:
    if isinstance(weight.sharding, NamedSharding):
        sharding = NamedSharding(weight.sharding.mesh, where.spec)
        return jax.jit(change, out_shardings=sharding)(weight)
    return jax.jit(change)(jnp.asarray(weight))
