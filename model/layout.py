"""How the weights of linear maps and of experts lie in memory for the kernels that read them.

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
from .parameters import (
    FLOAT8,
    Kind,
    Quantization,
    has_scales_by_input,
    is_linear,
    kind_of,
    stored_type,
)
from .sharding import Placement


@dataclass(frozen=True)
class Form:
    """What a parameter is before it is packed.

    Attributes:
      operation: which reads it. pack: its panels. dtype: the name of its type, or of one like it.
      together: entries along its inputs that are packed into one. transposed: it is stored as
        `[outputs, inputs]`. stacked: there is one for each expert. padded: its outputs need not be whole
        panels.
    """

    operation: str
    pack: Callable[[jax.Array], jax.Array]
    dtype: str
    together: int = 1
    transposed: bool = False
    stacked: bool = False
    padded: bool = False


WIDE = Form("linear", panels.pack, "float32")
EMBEDDING = Form("linear", panels.pack_transposed, "float32", transposed=True)
ROUTER = Form("linear", panels.pack_padded, "float32", padded=True)
INT8 = Form("int8_linear", panels.pack_int8, "int8", panels.QUAD)
EXPERTS = Form("experts", jax.vmap(panels.pack), "float32", panels.PANEL, stacked=True)
INT8_EXPERTS = Form("experts", jax.vmap(panels.pack_int8), "int8", panels.PANEL, stacked=True)
"""What enters one expert's product leaves another, so inputs are whole panels too: all of a layer's experts
are packed, or none."""
_GROUPED: dict[str | None, Form] = {
    "uint8": Form("grouped_linear", panels.pack_nibbles, "uint8", panels.GROUP // 2),
    "int8": Form("grouped_linear", panels.pack_bytes, "int8", panels.GROUP),
    "float16": Form("grouped_linear", panels.pack_scales, "float16"),
}
_GROUPED_EXPERTS: dict[str | None, Form] = {
    name: replace(form, operation="experts", pack=jax.vmap(form.pack), stacked=True)
    for name, form in _GROUPED.items()
}
"""A device's experts have whole groups of inputs, so they have whole panels too."""
_FP8: dict[str | None, Form] = {
    FLOAT8: Form("fp8_linear", panels.pack_fp8, FLOAT8),
    "float32": Form("fp8_linear", panels.pack_scales, "float32"),
}
_FP8_EXPERTS: dict[str | None, Form] = {
    FLOAT8: Form("experts", jax.vmap(panels.pack_fp8), FLOAT8, panels.PANEL, stacked=True),
    "float32": Form("experts", jax.vmap(panels.pack_scales), "float32", stacked=True),
}
_FORMS: dict[Kind | None, dict[str | None, Form]] = {
    None: {None: WIDE},
    "int8": {"int8": INT8},
    **dict.fromkeys(("int4", "int8-groups"), _GROUPED),
    **dict.fromkeys(("fp8", "fp8-blocks"), _FP8),
}
"""Kind -> stored type of a parameter -> its form."""
_STACKED: dict[Kind | None, dict[str | None, Form]] = {
    None: {None: EXPERTS},
    "int8": {"int8": INT8_EXPERTS},
    **dict.fromkeys(("int4", "int8-groups"), _GROUPED_EXPERTS),
    **dict.fromkeys(("fp8", "fp8-blocks"), _FP8_EXPERTS),
}


def form_of(name: str, rank: int, quantization: Quantization | None) -> Form | None:
    """The form of a linear weight, of experts, of a router, or of the scales of groups or blocks; None for
    other parameters.

    rank: of the weight; or of the scales, if these have an axis for inputs.
    """
    if name.endswith("router"):
        return ROUTER
    kind = kind_of(name, quantization)
    if is_linear(name) or has_scales_by_input(kind):
        forms = _STACKED if rank == 3 else _FORMS
        return forms[kind].get(stored_type(name, quantization))
    return None


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout for a backend of the operation that reads a weight."""

    backend: str
    shards: int

    def place(self, where: Placement, form: Form) -> Placement:
        """The placement of a parameter in this layout."""
        if self._transposes(form):
            return where.transposed()
        straight = where.transposed() if form.transposed else where
        if self.backend != "native" or not self._fits(straight, form):
            return where
        return replace(where, shape=_packed_shape(form, where.shape), axis=_packed_axis(straight))

    def apply(self, values: jax.Array, where: Placement, form: Form) -> jax.Array:
        """A parameter, placed at `where`, in this layout."""
        if self._transposes(form):
            return values.swapaxes(-1, -2)
        placed = self.place(where, form)
        return values if placed == where else _on_its_devices(form.pack, values, placed)

    def _transposes(self, form: Form) -> bool:
        """Whether weights are stored as `[outputs, inputs]`: int8 weights on a GPU. Its tensor cores
        multiply bytes along an output's inputs, so XLA would write the transposed weights at every step."""
        return self.backend == "transposed" or (self.backend == "triton" and form is INT8_EXPERTS)

    def _fits(self, where: Placement, form: Form) -> bool:
        """Whether each device's share is a whole number of panels."""
        shares = [size // (self.shards if axis == where.axis else 1) for axis, size in enumerate(where.shape)]
        inputs, outputs = shares[-2:]
        whole = form.padded or outputs % panels.PANEL == 0
        may_end_early = where.axis != 0 and not form.stacked
        return whole and (may_end_early or inputs % form.together == 0)


def _packed_axis(where: Placement) -> int | None:
    """The divided axis of panels, where outputs come before inputs; experts stay the first axis."""
    stacked = len(where.shape) - 2
    if where.axis is None or where.axis < stacked:
        return where.axis
    return 2 * stacked + 1 - where.axis


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
