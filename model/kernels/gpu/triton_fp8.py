"""Rows times fp8 weights on a GPU, in linear maps (see `triton_split.py`) and in experts.

Weights are read as bytes. The bits of e4m3 are the upper bits of a number of f16 that is 2^8 times smaller,
so a shift and a mask widen one, on GPUs without a type of fp8 too. Every number of e4m3 is exact in each type
that rows can have. Sums are scaled, not weights: with scales of blocks at the end of each iteration, which is
within a block, and with scales of outputs once. So nothing is rounded but sums.

Letters as in `triton_groups.py`; the rows have one part.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...parameters import BLOCK
from ..fp8 import Fp8Weight, as_bytes, fp8_plain
from .triton_groups import load_tile, precision
from .triton_products import MOST, Tile, Work
from .triton_split import WIDEST, block_rows, fits, multiply

Stack = tuple[Any, Any]
"""Bytes `[E, D, F]` and f32 scales `[E, F]` or `[E, D / 128, F]`, as arrays or as references."""

SMALLER = 256.0
"""What scales are multiplied by."""


def fp8_linear(
    x_TD: jax.Array, *weights: Fp8Weight, rows: jax.Array | None = None, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """See `registry.Fp8LinearKernel`.

    Args:
      interpret: run the kernel's body as JAX operations, on any platform.
    """
    return tuple(
        _product(x_TD, weight, interpret) if fits(x_TD, weight[0]) else fp8_plain(x_TD, weight)[0]
        for weight in weights
    )


def work(x: jax.Array, weights: tuple[Stack, ...], rows: int) -> Work:
    """The products of blocks of this many rows with experts' weights (see `triton_experts.py`)."""
    return Work(
        x[None], weights[0][0].shape[2], tile_of(rows, x.dtype.itemsize, 64 // len(weights)), products
    )


def tile_of(rows: int, itemsize: int, widest: int) -> Tile:
    """The tile for this many rows, a power of two, with at most `widest` outputs."""
    if itemsize == 4:
        return Tile(rows, 32, 32, warps=4, stages=2)
    if rows == MOST:
        return Tile(rows, 64, min(widest, 64), warps=4, stages=3)
    return Tile(rows, 64, widest, warps=4, stages=4)


def products(
    x_ref: Any,
    weights: tuple[Stack, ...],
    from_C: jax.Array,
    live_C: jax.Array,
    e: jax.Array,
    column_F: jax.Array,
    tile: Tile,
) -> list[jax.Array]:
    """Rows of x times columns of expert e's weights, f32 `[C, F]` for each weight."""
    steps = 0, pl.cdiv(x_ref.shape[2], tile.terms)
    return [add_up(x_ref, weight, from_C, live_C, e, column_F, tile, steps) for weight in weights]


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
    """See `triton_groups.add_up`; x is `[1, U, D]`."""
    w_ref, scale_ref = weight
    count, in_blocks = x_ref.shape[2], len(scale_ref.shape) == 3

    def add(i: jax.Array, sum_CF: jax.Array) -> jax.Array:
        input_D = i * tile.terms + lax.broadcasted_iota(jnp.int32, (tile.terms,), 0)
        live_CD = live_C[:, None] & (input_D < count)[None, :]
        w_DF = _widened(load_tile(w_ref, e, input_D, column_F), x_ref.dtype)
        x_CD = triton.load(x_ref.at[0, row_C[:, None], input_D[None, :]], mask=live_CD, other=0)
        found_CF = triton.dot(x_CD, w_DF, precision=precision(x_ref.dtype))
        if in_blocks:
            found_CF *= _scales(scale_ref, (e, i * tile.terms // BLOCK), column_F)
        return sum_CF + found_CF

    assert BLOCK % tile.terms == 0
    zero_CF = jnp.zeros((row_C.shape[0], column_F.shape[0]), jnp.float32)
    sum_CF = lax.fori_loop(*steps, add, zero_CF)
    return sum_CF if in_blocks else sum_CF * _scales(scale_ref, (e,), column_F)


def _product(x_TD: jax.Array, weight: Fp8Weight, interpret: bool) -> jax.Array:
    w_DF, scale = weight
    itemsize = x_TD.dtype.itemsize
    tile = tile_of(block_rows(x_TD.shape[0], itemsize), itemsize, WIDEST)
    stack = as_bytes(w_DF)[None], scale[None]
    return multiply(add_up, x_TD[None], stack, tile, name="fp8", interpret=interpret)


def _widened(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The numbers with these bits, over SMALLER."""
    wide = bits.astype(jnp.uint16)
    half = lax.bitcast_convert_type((wide & 0x80) << 8 | (wide & 0x7F) << 7, jnp.float16)
    return half if dtype == jnp.float16 else half.astype(jnp.float32).astype(dtype)


def _scales(scale_ref: Any, place: tuple[Any, ...], column_F: jax.Array) -> jax.Array:
    """Of these columns, for sums of products with numbers that are too small: f32 `[1, F]`."""
    scale_F = triton.load(scale_ref.at[*place, column_F], mask=column_F < scale_ref.shape[-1], other=0.0)
    return scale_F[None, :] * SMALLER
