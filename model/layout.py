"""How linear weights lie in memory for the kernels that read them.

A checkpoint's weights are `[inputs, outputs]`. Some backends read another order, which is made once, when
the engine is built. What a backend cannot hold in its own order stays as it is; its kernel sees that by the
shape.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from .kernels import panels
from .parameters import Quantization, is_grouped, is_linear, stored_type
from .sharding import Placement


@dataclass(frozen=True)
class Form:
    """What a parameter is before it is packed.

    Attributes:
      pack: its panels. dtype: the name of its type, or of one like it. together: entries along its first axis
        that are packed into one. transposed: it is stored as `[outputs, inputs]`.
    """

    pack: Callable[[jax.Array], jax.Array]
    dtype: str
    together: int = 1
    transposed: bool = False


WIDE = Form(panels.pack, "float32")
EMBEDDING = Form(panels.pack_transposed, "float32", transposed=True)
INT8 = Form(panels.pack_int8, "int8", panels.QUAD)
_GROUPED = {
    "uint8": Form(panels.pack_nibbles, "uint8", panels.GROUP // 2),
    "int8": Form(panels.pack_bytes, "int8", panels.GROUP),
    "float16": Form(panels.pack_scales, "float16"),
}


def form_of(name: str, quantization: Quantization | None) -> Form | None:
    """The form of a linear weight of two axes, or of its groups' scales; None for other parameters."""
    if is_grouped(quantization):
        return _GROUPED.get(stored_type(name, quantization) or "")
    if not is_linear(name):
        return None
    return INT8 if quantization else WIDE


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout for a backend of the operation that computes linear maps."""

    backend: str
    shards: int

    def place(self, where: Placement, form: Form) -> Placement:
        """The placement of a parameter in this layout."""
        if self.backend == "transposed":
            return where.transposed()
        straight = where.transposed() if form.transposed else where
        if self.backend != "native" or not self._fits(straight, form):
            return where
        axis = None if straight.axis is None else 1 - straight.axis
        return replace(where, shape=_packed_shape(form, where.shape), axis=axis)

    def apply(self, values: jax.Array, where: Placement, form: Form) -> jax.Array:
        """A parameter, placed at `where`, in this layout."""
        if self.backend == "transposed":
            return values.T
        placed = self.place(where, form)
        return values if placed == where else _on_its_devices(form.pack, values, placed)

    def _fits(self, where: Placement, form: Form) -> bool:
        """Whether each device's share is a whole number of panels."""
        first, outputs = (
            size // (self.shards if axis == where.axis else 1) for axis, size in enumerate(where.shape)
        )
        return outputs % panels.PANEL == 0 and (where.axis != 0 or first % form.together == 0)


@cache
def _packed_shape(form: Form, shape: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(form.pack, jax.ShapeDtypeStruct(shape, jnp.dtype(form.dtype))).shape


def _on_its_devices(
    change: Callable[[jax.Array], jax.Array], weight: jax.Array, where: Placement
) -> jax.Array:
    if isinstance(weight.sharding, NamedSharding):
        sharding = NamedSharding(weight.sharding.mesh, where.spec)
        return jax.jit(change, out_shardings=sharding)(weight)
    return jax.jit(change)(jnp.asarray(weight))
