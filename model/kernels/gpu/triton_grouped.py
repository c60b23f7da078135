"""Linear maps with weights in groups on a GPU: packed bytes are read by a kernel (see `triton_split.py`),
which dequantises them in registers (see `triton_groups.py`)."""

import jax

from ...quantize import GroupedWeight
from ..linear import grouped_plain
from .triton_groups import Stack, add_up, split_inputs, tile_of
from .triton_split import WIDEST, block_rows, fits, multiply


def grouped_linear(
    x_TD: jax.Array, *weights: GroupedWeight, rows: jax.Array | None = None, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """See `registry.GroupedLinearKernel`; x is not rounded, and weights are rounded to its type.

    Args:
      interpret: run the kernel's body as JAX operations, on any platform.
    """
    return tuple(
        _product(x_TD, weight, interpret) if fits(x_TD, weight[0]) else grouped_plain(x_TD, weight)[0]
        for weight in weights
    )


def _product(x_TD: jax.Array, weight: GroupedWeight, interpret: bool) -> jax.Array:
    stack: Stack = jax.tree.map(lambda part: part[None], weight)
    itemsize = x_TD.dtype.itemsize
    tile = tile_of(block_rows(x_TD.shape[0], itemsize), itemsize, (stack,), WIDEST)
    x_PTI = split_inputs(x_TD, stack)
    return multiply(add_up, x_PTI, stack, tile, name="grouped", interpret=interpret)
