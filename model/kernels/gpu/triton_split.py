"""Rows times one weight on a GPU: a Pallas kernel, compiled by Triton, for weights that are read as bytes.

A program computes a tile of rows and outputs; how it reads and widens a tile of the weight is left to
`triton_groups.py` and `triton_fp8.py`. With few rows, the programs of all outputs would not keep a GPU busy,
so the inputs are divided among S programs, whose sums XLA adds up (split-K). S depends on shapes alone: other
rows change no bit of a row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from .triton_attention import is_addressable
from .triton_decode import PROGRAMS
from .triton_products import MOST, MOST_F32, Tile
from .triton_walk import FEWEST

WIDEST = 128
"""Outputs of a tile, at most."""

SHARE = 16
"""Inputs of a part for each row of x, at least: then the parts' sums are fewer bytes than the weight."""

AddUp = Callable[..., jax.Array]
"""Some rows times some columns of a weight (see `triton_groups.add_up`)."""


def fits(x_TD: jax.Array, w: jax.Array) -> bool:
    """Whether the kernel takes these arrays: x of f32, bf16 or f16, and all bytes within reach. Any number of
    rows and outputs: what lies beyond them is masked."""
    return x_TD.dtype in (jnp.float32, jnp.bfloat16, jnp.float16) and is_addressable(w)


def block_rows(rows: int, itemsize: int) -> int:
    """The rows of a tile."""
    most = MOST_F32 if itemsize == 4 else MOST
    return max(FEWEST, min(most, pl.next_power_of_2(rows)))


def count_parts(rows: int, inputs: int, outputs: int, tile: Tile) -> int:
    """S: the fewest that give PROGRAMS programs, but none with few inputs for so many rows."""
    programs = pl.cdiv(outputs, tile.outputs) * pl.cdiv(rows, tile.rows)
    return max(1, min(pl.cdiv(PROGRAMS, programs), inputs // (SHARE * max(rows, FEWEST))))


def multiply(
    add_up: AddUp, x_PTI: jax.Array, stack: tuple[Any, ...], tile: Tile, *, name: str, interpret: bool
) -> jax.Array:
    """The product of rows in P parts with the only weight of a stack: f32 `[T, F]`."""
    (inputs, rows, lines), outputs = x_PTI.shape, stack[0].shape[2]
    parts = count_parts(rows, inputs * lines, outputs, tile)
    y_STF = pl.pallas_call(
        partial(_kernel, add_up=add_up, tile=tile),
        out_shape=jax.ShapeDtypeStruct((parts, rows, outputs), jnp.float32),
        grid=(parts, pl.cdiv(outputs, tile.outputs), pl.cdiv(rows, tile.rows)),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name=f"{name}_{tile.rows}x{tile.outputs}_in_{parts}",
    )(x_PTI, stack)
    return y_STF[0] if parts == 1 else y_STF.sum(axis=0)


def _kernel(x_ref: Any, stack: tuple[Any, ...], out_ref: Any, *, add_up: AddUp, tile: Tile) -> None:
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
    y_CF = add_up(x_ref, stack, row_C, live_C, 0, column_F, tile, span)
    live_CF = live_C[:, None] & (column_F < outputs)[None, :]
    triton.store(out_ref.at[part, row_C[:, None], column_F[None, :]], y_CF, mask=live_CF)
