"""Attention on a GPU: the portable kernel's tiles as Pallas kernels, compiled by Triton.

A program takes some queries of one row and one key head, with all G heads that share it as rows of one
product, and walks the row's page table (`triton_walk.py`). Rows with one token and tiles of prompts are two
calls. If there are few rows with one token, several programs share each of them (`triton_decode.py`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...cache import REACHED, TILE, Batch, Int8Pool, Pool
from .. import block_attention
from .triton_decode import attend_parts, count_parts
from .triton_walk import FEWEST, SHALLOW, Pages, average, entries_of, keys_of, pipelined, walk

ROWS = 64
"""Queries times heads in a program, if a tile has that many."""


def attend(
    q_TNH: jax.Array,
    pool: Pool,
    batch: Batch,
    *,
    window: int | None,
    parts: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `registry.AttentionKernel`; tokens of no row get zero.

    Args:
      parts: of the keys of a row with one token; None derives it from the shapes.
      interpret: run the kernels' bodies as JAX operations, on any platform.
    """
    if not fits(q_TNH, pool):
        return block_attention.attend(q_TNH, pool, batch, window=window)
    tokens = q_TNH.shape[0]
    run = partial(_run, q_TNH, pool, batch, window=window, interpret=interpret)
    parts = parts or count_parts(q_TNH, pool, batch.tables_BM)
    if parts > 1:
        out_TNH = _attend_singles(q_TNH, pool, batch, parts=parts, window=window, interpret=interpret)
    else:
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
    within = is_addressable(jax.tree.leaves(pool)[0])
    return wide and alike and power and FEWEST <= size <= 256 and shared <= ROWS and within


def is_addressable(values: jax.Array) -> bool:
    """Whether a kernel can reach all numbers of an array: Pallas takes offsets of 64 bits only beyond 4 GiB.
    Those of 32 bits are signed, so they reach 2^31 numbers."""
    return values.size <= REACHED or values.size * values.dtype.itemsize > 2 * REACHED


def _attend_singles(q_TNH: jax.Array, pool: Pool, batch: Batch, **how: Any) -> jax.Array:
    """Attention of rows with one token, in parts; other tokens get zero."""
    if batch.tiles is None:
        return attend_parts(q_TNH, pool, batch.tables_BM, batch.positions_T, **how)
    q_BNH = q_TNH.at[batch.singles_B].get(mode="fill", fill_value=0)
    positions_B = batch.positions_T.at[batch.singles_B].get(mode="fill", fill_value=-1)
    out_BNH = attend_parts(q_BNH, pool, batch.tables_BM, positions_B, **how)
    return jnp.zeros_like(q_TNH).at[batch.singles_B].set(out_BNH, mode="drop")


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
    _, page_size, entries, _ = pool.shape
    heads = pl.next_power_of_2(q_TNH.shape[1] // (entries // 2))
    queries = min(pl.next_power_of_2(tile), ROWS // heads)
    heads = max(heads, FEWEST // queries)
    keys, held = keys_of(q_TNH), entries_of(pool)
    kernel = partial(_kernel, queries=queries, heads=heads, keys=keys, page_size=page_size, window=window)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q_TNH.shape, q_TNH.dtype),
        grid=(start_C.shape[0], pl.cdiv(tile, queries), entries // 2),
        input_output_aliases={6 + len(held): 0},
        interpret=interpret,
        compiler_params=pipelined(heads, q_TNH) if tile == 1 else SHALLOW,
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
    pages = Pages(table_ref, pool_ref, tuple(scale_refs), page_size, keys)
    _, total_R, out_RH = walk(q_RH, position_R, row_ref[run], k, pages, window=window)
    out_RH = average(total_R, out_RH).astype(out_ref.dtype)
    triton.store(out_ref.at[where], out_RH, mask=live_RH & (position_R >= 0)[:, None])
