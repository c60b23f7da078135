"""Rows times wide or int8 weights, inside the Pallas kernels for experts (see `triton_experts.py`).

Sums are f32, exact for f32 weights, or int32; the scales of int8 weights and rows are applied last.
`triton_groups.py` has the same for weights in groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...quantize import quantize_last

MOST, MOST_F32 = 128, 32
"""Rows of a block: with more, a program's sums would not fit into its registers. Exact products of f32 are
made without tensor cores."""

LINE = 128
"""Bytes of a row of x, or of an int8 weight's output, in each iteration."""

Scaled = tuple[Any, Any]
"""Numbers and their f32 scales, or None: rows `[U, D]` and `[U]`; wide weights `[E, D, F]`; int8 ones
`[E, F, D]` and `[E, F]`."""


@dataclass(frozen=True)
class Tile:
    """What a program computes: for each weight `rows` x `outputs` sums, `terms` in each iteration, which are
    inputs, or lines of a weight in groups; and with what."""

    rows: int
    terms: int
    outputs: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Work:
    """How rows are multiplied by one weight or two.

    Attributes:
      x: what the kernel reads of the rows. outputs: of each weight. products: see `products`.
    """

    x: Any
    outputs: int
    tile: Tile
    products: Callable[..., list[jax.Array]]


def work(x_UD: jax.Array, weights: tuple[Scaled, ...], rows: int) -> Work:
    """The products of blocks of this many rows; int8 weights multiply rounded rows."""
    w, scale_EF = weights[0]
    x = (x_UD, None) if scale_EF is None else quantize_last(x_UD)
    return Work(
        x, w.shape[2 if scale_EF is None else 1], tile_of(rows, w.dtype.itemsize, len(weights)), products
    )


def tile_of(rows: int, itemsize: int, weights: int) -> Tile:
    """The tile for blocks of this many rows, and for one weight or two."""
    terms = LINE // itemsize
    if itemsize == 4:
        return Tile(rows, terms, 32, warps=4, stages=2)
    if rows < MOST:
        return Tile(rows, terms, 64, warps=4, stages=4)
    return Tile(rows, terms, 128 // weights, warps=8, stages=3)


def products(
    x: Scaled,
    weights: tuple[Scaled, ...],
    from_C: jax.Array,
    live_C: jax.Array,
    e: jax.Array,
    column_F: jax.Array,
    tile: Tile,
) -> list[jax.Array]:
    """Rows of x times columns of expert e's weights, f32 `[C, F]` for each weight."""
    x_ref, x_scale_ref = x
    width, kind = x_ref.shape[1], jnp.int32 if x_scale_ref is not None else jnp.float32

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        input_D = i * tile.terms + lax.broadcasted_iota(jnp.int32, (tile.terms,), 0)
        live_CD = live_C[:, None] & (input_D < width)[None, :]
        x_CD = triton.load(x_ref.at[from_C[:, None], input_D[None, :]], mask=live_CD, other=0)
        return tuple(
            sum_CF + _times(x_CD, w, e, input_D, column_F) for sum_CF, w in zip(sums, weights, strict=True)
        )

    zero_CF = jnp.zeros((tile.rows, tile.outputs), kind)
    sums = lax.fori_loop(0, pl.cdiv(width, tile.terms), add, (zero_CF,) * len(weights))
    if x_scale_ref is None:
        return list(sums)
    scale_C = triton.load(x_scale_ref.at[from_C], mask=live_C, other=0.0)
    return [
        sum_CF.astype(jnp.float32) * scale_C[:, None] * _scales(scale_ref, e, column_F)
        for sum_CF, (_, scale_ref) in zip(sums, weights, strict=True)
    ]


def _times(x_CD: jax.Array, w: Scaled, e: jax.Array, input_D: jax.Array, column_F: jax.Array) -> jax.Array:
    """These terms of the sums: f32, exact for f32, or int32."""
    w_ref, scale_ref = w
    swapped = scale_ref is not None
    row, column = (column_F, input_D) if swapped else (input_D, column_F)
    inside = (row < w_ref.shape[1])[:, None] & (column < w_ref.shape[2])[None, :]
    values = triton.load(w_ref.at[e, row[:, None], column[None, :]], mask=inside, other=0)
    exact = lax.Precision.HIGHEST if x_CD.dtype == jnp.float32 else None
    return triton.dot(x_CD, values, trans_b=swapped, precision=exact)


def _scales(scale_ref: Any, e: jax.Array, column_F: jax.Array) -> jax.Array:
    """The scales of these columns, f32 `[1, F]`."""
    return triton.load(scale_ref.at[e, column_F], mask=column_F < scale_ref.shape[1], other=0.0)[None, :]
