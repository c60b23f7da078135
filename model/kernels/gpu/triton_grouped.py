"""Linear maps with weights in groups on a GPU: a Pallas kernel, compiled by Triton, that reads packed bytes.

A program computes a tile of rows and outputs and dequantises what it reads (see `triton_groups.py`). With few
rows, the programs of all outputs would not keep a GPU busy, so the inputs are divided among S programs, whose
sums XLA adds up (split-K). S depends on shapes alone: other rows change no bit of a row.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...quantize import GroupedWeight
from ..linear import grouped_plain
from .triton_attention import is_addressable
from .triton_decode import PROGRAMS
from .triton_groups import Stack, add_up, split_inputs, tile_of
from .triton_products import MOST, MOST_F32, Tile
from .triton_walk import FEWEST

WIDEST = 128
"""Outputs of a tile, at most."""

SHARE = 16
"""Inputs of a part for each row of x, at least: then the parts' sums are fewer bytes than the weight."""


def grouped_linear(
    x_TD: jax.Array, *weights: GroupedWeight, rows: jax.Array | None = None, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """See `registry.GroupedLinearKernel`; x is not rounded, and weights are rounded to its type.

    Args:
      interpret: run the kernel's body as JAX operations, on any platform.
    """
    return tuple(
        _product(x_TD, weight, interpret) if fits(x_TD, weight) else grouped_plain(x_TD, weight)[0]
        for weight in weights
    )


def fits(x_TD: jax.Array, weight: GroupedWeight) -> bool:
    """Whether the kernel takes these arrays: x of f32, bf16 or f16, and all bytes within reach. Any number of
    rows and outputs: what lies beyond them is masked."""
    return x_TD.dtype in (jnp.float32, jnp.bfloat16, jnp.float16) and is_addressable(weight[0])


def block_rows(rows: int, itemsize: int) -> int:
    """The rows of a tile."""
    most = MOST_F32 if itemsize == 4 else MOST
    return max(FEWEST, min(most, pl.next_power_of_2(rows)))


def count_parts(rows: int, inputs: int, outputs: int, tile: Tile) -> int:
    """S: the fewest that give PROGRAMS programs, but none with few inputs for so many rows."""
    programs = pl.cdiv(outputs, tile.outputs) * pl.cdiv(rows, tile.rows)
    return max(1, min(pl.cdiv(PROGRAMS, programs), inputs // (SHARE * max(rows, FEWEST))))


def _product(x_TD: jax.Array, weight: GroupedWeight, interpret: bool) -> jax.Array:
    stack: Stack = jax.tree.map(lambda part: part[None], weight)
    rows, outputs = x_TD.shape[0], weight[0].shape[1]
    itemsize = x_TD.dtype.itemsize
    tile = tile_of(block_rows(rows, itemsize), itemsize, (stack,), WIDEST)
    parts = count_parts(rows, x_TD.shape[1], outputs, tile)
    y_STF = pl.pallas_call(
        partial(_kernel, tile=tile),
        out_shape=jax.ShapeDtypeStruct((parts, rows, outputs), jnp.float32),
        grid=(parts, pl.cdiv(outputs, tile.outputs), pl.cdiv(rows, tile.rows)),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name=f"grouped_{tile.rows}x{tile.outputs}_in_{parts}",
    )(split_inputs(x_TD, stack), stack)
    return y_STF[0] if parts == 1 else y_STF.sum(axis=0)


def _kernel(x_ref: Any, weight: Stack, out_ref: Any, *, tile: Tile) -> None:
    """One program: some rows times some columns, over one part of the lines.

    Programs of the same columns come one after another, so that they read them at about the same time.
    """
    part, columns, block = (pl.program_id(axis) for axis in range(3))
    parts, rows, outputs = out_ref.shape
    row_C = block * tile.rows + lax.broadcasted_iota(jnp.int32, (tile.rows,), 0)
    column_F = columns * tile.outputs + lax.broadcasted_iota(jnp.int32, (tile.outputs,), 0)
    live_C, steps = row_C < rows, pl.cdiv(x_ref.shape[2], tile.terms)
    each = pl.cdiv(steps, parts)
    span = part * each, jnp.minimum((part + 1) * each, steps)
    y_CF = add_up(x_ref, weight, row_C, live_C, 0, column_F, tile, span)
    live_CF = live_C[:, None] & (column_F < outputs)[None, :]
    triton.store(out_ref.at[part, row_C[:, None], column_F[None, :]], y_CF, mask=live_CF)
