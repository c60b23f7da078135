"""Attention on a GPU: the portable kernel's tiles as one Pallas kernel, compiled by Triton.

A program takes some queries of one row and one key head, with all G heads that share it as rows of one
product, and iterates over the row's page table with an online softmax in f32 (Milakov and Gimelshein 2018,
arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). Rows with one token and tiles of prompts are two calls.
int8 keys and values are widened for the products; their scales are applied to scores and weights.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ..cache import REACHED, TILE, Batch, Int8Pool, Pool
from . import block_attention

KEY_BYTES = 16384
"""Bytes of keys, and of values, per iteration: shared memory holds two iterations of both."""

ROWS = 64
"""Queries times heads in a program, if a tile has that many."""

FEWEST = 16
"""The minimum size of a side of Triton's product."""

_MASKED, _FLOOR = -1e30, -1e28
"""As in `block_attention`: a block without a visible key has weight zero."""


def attend(
    q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None, interpret: bool = False
) -> jax.Array:
    """See `registry.AttentionKernel`; tokens of no row get zero.

    Args:
      interpret: run the kernel's body as JAX operations, on any platform.
    """
    if not fits(q_TNH, pool):
        return block_attention.attend(q_TNH, pool, batch, window=window)
    tokens = q_TNH.shape[0]
    run = partial(_run, q_TNH, pool, batch, window=window, interpret=interpret)
    rows_B = jnp.arange(batch.singles_B.shape[0], dtype=jnp.int32)
    single_B = (batch.singles_B < tokens).astype(jnp.int32)
    out_TNH = run(jnp.zeros_like(q_TNH), batch.singles_B, single_B, rows_B, tile=1)
    if batch.tiles is not None:
        tiles = batch.tiles
        used_C = jnp.arange(tiles.start_C.shape[0]) < tiles.count
        length_C = jnp.where(used_C, tiles.length_C, 0)
        out_TNH = run(out_TNH, tiles.start_C, length_C, tiles.row_C, tile=min(TILE, tokens))
    return out_TNH


def fits(q_TNH: jax.Array, pool: Pool) -> bool:
    """Whether the kernel takes these shapes: the sizes of Triton's arrays are powers of two, at least 16 in a
    product; a program's registers hold queries of up to 16 heads of 256."""
    heads, size = q_TNH.shape[1:]
    shared = heads // (pool.shape[2] // 2)
    power = size & (size - 1) == 0
    wide = q_TNH.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    alike = isinstance(pool, Int8Pool) or q_TNH.dtype == pool.dtype
    return wide and alike and power and FEWEST <= size <= 256 and shared <= ROWS and _is_addressable(pool)


def _is_addressable(pool: Pool) -> bool:
    """Whether all numbers of the pool can be reached: Pallas takes offsets of 64 bits only beyond 4 GiB.
    Those of 32 bits are signed, so they reach 2^31 numbers."""
    values = jax.tree.leaves(pool)[0]
    return values.size <= REACHED or values.size * values.dtype.itemsize > 2 * REACHED


def _run(
    q_TNH: jax.Array,
    pool: Pool,
    batch: Batch,
    out_TNH: jax.Array,
    start_C: jax.Array,
    length_C: jax.Array,
    row_C: jax.Array,
    *,
    tile: int,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """`out_TNH` with the tokens of C runs filled in; each run is up to `tile` tokens of one row."""
    pages, page_size, entries, size = pool.shape
    heads = pl.next_power_of_2(q_TNH.shape[1] // (entries // 2))
    queries = min(pl.next_power_of_2(tile), ROWS // heads)
    heads = max(heads, FEWEST // queries)
    keys = max(FEWEST, min(64, KEY_BYTES // (size * q_TNH.dtype.itemsize)))
    held = tuple(x.reshape(pages * page_size, *x.shape[2:]) for x in jax.tree.leaves(pool))
    kernel = partial(_kernel, queries=queries, heads=heads, keys=keys, page_size=page_size, window=window)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q_TNH.shape, q_TNH.dtype),
        grid=(start_C.shape[0], pl.cdiv(tile, queries), entries // 2),
        input_output_aliases={6 + len(held): 0},
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        name=f"paged_attention_{queries}x{heads}",
    )(
        *(start_C, length_C, row_C, batch.positions_T, batch.tables_BM, q_TNH),
        *(*held, out_TNH),
    )


def _kernel(
    start_ref: Any,
    length_ref: Any,
    row_ref: Any,
    position_ref: Any,
    table_ref: Any,
    q_ref: Any,
    pool_ref: Any,
    *rest: Any,
    queries: int,
    heads: int,
    keys: int,
    page_size: int,
    window: int | None,
) -> None:
    """One program: `queries` tokens of a run, and the heads of one key head, in rows R = queries x heads.

    The other references are the pool's scales, if it has any, the output before the call, and the output.
    """
    *scale_refs, _, out_ref = rest
    run, part, k = (pl.program_id(axis) for axis in range(3))
    shared, size = q_ref.shape[1] // (pool_ref.shape[1] // 2), q_ref.shape[2]
    rows = lax.broadcasted_iota(jnp.int32, (queries * heads,), 0)
    query_R, head_R = part * queries + rows // heads, rows % heads
    live_R = (query_R < length_ref[run]) & (head_R < shared)
    token_R, head_R = start_ref[run] + query_R, k * shared + head_R
    lanes_H = lax.broadcasted_iota(jnp.int32, (size,), 0)
    live_RH = jnp.broadcast_to(live_R[:, None], (queries * heads, size))
    where = token_R[:, None], head_R[:, None], lanes_H[None, :]
    q_RH = triton.load(q_ref.at[where], mask=live_RH, other=0.0)
    position_R = triton.load(position_ref.at[token_R], mask=live_R, other=-1)

    def iterate(i, carry):
        key_S = i * keys + lax.broadcasted_iota(jnp.int32, (keys,), 0)
        page_S = jnp.minimum(key_S // page_size, table_ref.shape[1] - 1)
        slot_S = table_ref[row_ref[run], page_S] * page_size + key_S % page_size
        k_SH, v_SH = (pool_ref[slot_S[:, None], 2 * k + kind, lanes_H[None, :]] for kind in (0, 1))
        k_SH, v_SH = k_SH.astype(q_RH.dtype), v_SH.astype(q_RH.dtype)
        scales = tuple(ref[slot_S, 2 * k + kind][None] for ref in scale_refs for kind in (0, 1))
        distance_RS = position_R[:, None] - key_S[None, :]
        seen_RS = distance_RS >= 0 if window is None else (distance_RS >= 0) & (distance_RS < window)
        return _add_block(q_RH, k_SH, v_SH, scales, seen_RS, *carry)

    last = jnp.max(position_R) // keys + 1
    first = 0 if window is None else _first_seen(position_R, window) // keys
    zero_R = jnp.zeros(queries * heads, jnp.float32)
    start = zero_R + _FLOOR, zero_R, jnp.zeros((queries * heads, size), jnp.float32)
    _, total_R, out_RH = lax.fori_loop(first, last, iterate, start)
    out_RH = out_RH / jnp.maximum(total_R, 1e-30)[:, None]
    seen_RH = live_RH & (position_R >= 0)[:, None]
    triton.store(out_ref.at[where], out_RH.astype(out_ref.dtype), mask=seen_RH)


def _first_seen(position_R: jax.Array, window: int) -> jax.Array:
    """The first key that any of the queries attends to."""
    lowest = jnp.min(jnp.where(position_R < 0, jnp.iinfo(jnp.int32).max, position_R))
    return jnp.maximum(lowest - window + 1, 0)


def _add_block(
    q_RH: jax.Array,
    k_SH: jax.Array,
    v_SH: jax.Array,
    scales: tuple[jax.Array, ...],
    seen_RS: jax.Array,
    top_R: jax.Array,
    total_R: jax.Array,
    out_RH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Running maximum, sum and weighted values after S more keys; `scales` are the keys' and the values'."""
    key_scale_1S, value_scale_1S = scales or (1.0, 1.0)
    exact = lax.Precision.HIGHEST if q_RH.dtype == jnp.float32 else None
    score_RS = triton.dot(q_RH, k_SH.T, precision=exact) * (1.0 / math.sqrt(q_RH.shape[1])) * key_scale_1S
    score_RS = jnp.where(seen_RS, score_RS, _MASKED)
    new_R = jnp.maximum(top_R, score_RS.max(axis=1))
    weight_RS, shrink_R = jnp.exp(score_RS - new_R[:, None]), jnp.exp(top_R - new_R)
    value_RH = triton.dot((weight_RS * value_scale_1S).astype(v_SH.dtype), v_SH, precision=exact)
    return new_R, total_R * shrink_R + weight_RS.sum(axis=1), out_RH * shrink_R[:, None] + value_RH
