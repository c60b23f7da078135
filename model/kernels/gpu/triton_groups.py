"""Rows times a weight in groups, inside Pallas kernels for Triton: a tile is dequantised in registers.

Nothing is rounded but the weights, to the type of the rows, after a multiplication and an addition in f32. A
byte with two values is not taken apart into neighbouring inputs, because that would move values between
threads: its low halves are multiplied by the even inputs and its high halves by the odd ones, and the two
products are added up. So the rows come in as many parts as a byte has values.

Letters beside those of `model/config.py`: P parts; I = D / P inputs of a part, the lines of a weight; C rows,
L lines, G groups and F outputs of a tile; U rows of a kernel's input.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...parameters import GROUP
from ..grouped import dequantize_lines
from .triton_products import MOST, Tile, Work

Stack = tuple[Any, Any, Any]
"""A stack of `quantize.GroupedWeight`, as arrays or as references: q `[E, I, F]`, scale and low
`[E, D / 32, F]`."""


def work(x: jax.Array, weights: tuple[Stack, ...], rows: int) -> Work:
    """The products of blocks of this many rows with experts' weights (see `triton_experts.py`).

    x is `[U, D]`, or in parts already.
    """
    x_refs = tuple(x if x.ndim == 3 else split_inputs(x, weight) for weight in weights)
    return Work(x_refs, weights[0][0].shape[2], tile_of(rows, x.dtype.itemsize, weights, 64), products)


def split_inputs(x_UD: jax.Array, weight: Stack) -> jax.Array:
    """The rows for this weight, `[P, U, I]`."""
    parts = parts_of(weight)
    return x_UD.reshape(x_UD.shape[0], -1, parts).transpose(2, 0, 1)


def tile_of(rows: int, itemsize: int, weights: tuple[Stack, ...], widest: int) -> Tile:
    """The tile for this many rows, a power of two, and one weight or two, with at most `widest` outputs."""
    if itemsize == 4:
        return Tile(rows, max(map(_lines_of_group, weights)), 32, warps=4, stages=2)
    if rows == MOST:
        return Tile(rows, 32, min(widest, 64 // len(weights)), warps=4, stages=3)
    return Tile(rows, 64 if rows <= 32 else 32, min(widest, 128 // len(weights)), warps=4, stages=4)


def products(
    x_refs: tuple[Any, ...],
    weights: tuple[Stack, ...],
    from_C: jax.Array,
    live_C: jax.Array,
    e: jax.Array,
    column_F: jax.Array,
    tile: Tile,
) -> list[jax.Array]:
    """Rows of x times columns of expert e's weights, f32 `[C, F]` for each weight."""
    return [
        add_up(x_ref, weight, from_C, live_C, e, column_F, tile, (0, pl.cdiv(x_ref.shape[2], tile.terms)))
        for x_ref, weight in zip(x_refs, weights, strict=True)
    ]


def add_up(
    x_ref: Any,
    weight: Stack,
    row_C: jax.Array,
    live_C: jax.Array,
    e: jax.Array | int,
    column_F: jax.Array,
    tile: Tile,
    steps: tuple[Any, Any],
) -> jax.Array:
    """Some rows of x times some columns of weight e, over some iterations: f32 `[C, F]`.

    Lines and columns beyond the arrays, and rows that are not live, count as zero.

    Args:
      x_ref: see `split_inputs`. steps: the first iteration, and the one after the last.
    """
    count = x_ref.shape[2]

    def add(i: jax.Array, sum_CF: jax.Array) -> jax.Array:
        line_L = i * tile.terms + lax.broadcasted_iota(jnp.int32, (tile.terms,), 0)
        live_CL = live_C[:, None] & (line_L < count)[None, :]
        for part, w_LF in enumerate(_tile(weight, e, line_L, i, column_F, x_ref.dtype)):
            x_CL = triton.load(x_ref.at[part, row_C[:, None], line_L[None, :]], mask=live_CL, other=0)
            sum_CF += triton.dot(x_CL, w_LF, precision=precision(x_ref.dtype))
        return sum_CF

    assert tile.terms % _lines_of_group(weight) == 0
    zero_CF = jnp.zeros((row_C.shape[0], column_F.shape[0]), jnp.float32)
    return lax.fori_loop(*steps, add, zero_CF)


def parts_of(weight: Stack) -> int:
    """P."""
    return 1 if weight[2] is None else 2


def _lines_of_group(weight: Stack) -> int:
    """The lines that a group of inputs has: the fewest of an iteration, and a power of two."""
    return GROUP // parts_of(weight)


def precision(dtype: jnp.dtype) -> lax.Precision | None:
    """Products of f32 are exact, not TF32."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _tile(
    weight: Stack, e: jax.Array | int, line_L: jax.Array, i: jax.Array, column_F: jax.Array, dtype: jnp.dtype
) -> list[jax.Array]:
    """These lines and columns of weight e, `[L, F]` for each part of the inputs."""
    q_ref, *halves = weight
    groups = line_L.shape[0] // _lines_of_group(weight)
    group_G = i * groups + lax.broadcasted_iota(jnp.int32, (groups,), 0)
    scale_GF, low_GF = (None if ref is None else load_tile(ref, e, group_G, column_F) for ref in halves)
    assert scale_GF is not None
    return dequantize_lines((load_tile(q_ref, e, line_L, column_F), scale_GF, low_GF), dtype)


def load_tile(ref: Any, e: jax.Array | int, row: jax.Array, column: jax.Array) -> jax.Array:
    """These rows and columns of array e of a stack; those beyond it are zero."""
    inside = (row < ref.shape[1])[:, None] & (column < ref.shape[2])[None, :]
    return triton.load(ref.at[e, row[:, None], column[None, :]], mask=inside, other=0)
