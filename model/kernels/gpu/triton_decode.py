"""Decode attention on a GPU, with each sequence split across several programs: flash decoding.

With few rows, a program for each row and key head leaves most of a GPU idle. So S programs walk an equal part
each of a row's own keys, and what they find is added up, weighted by the sums of their softmax (Dao et al.
2023, "Flash-Decoding for long-context inference"). S depends on shapes alone, and a row's parts on its own
length alone: where all steps have one shape (`Shapes.single`), other rows change no bit of a row.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...cache import Pool
from .triton_walk import FEWEST, Pages, average, entries_of, keys_of, pipelined, walk

PROGRAMS = 256
"""Programs that keep a GPU busy: about two on each of the 132 multiprocessors of an H100."""

MOST_PARTS = 32
"""The most parts of a sequence: one row of 8 key heads then has PROGRAMS programs."""


def count_parts(q_TNH: jax.Array, pool: Pool, tables_BM: jax.Array) -> int:
    """S: the fewest parts that give PROGRAMS programs, but no more than the longest sequence has blocks."""
    blocks = pl.cdiv(tables_BM.shape[1] * pool.shape[1], keys_of(q_TNH))
    programs = tables_BM.shape[0] * (pool.shape[2] // 2)
    return min(MOST_PARTS, blocks, pl.cdiv(PROGRAMS, programs))


def attend_parts(
    q_BNH: jax.Array,
    pool: Pool,
    tables_BM: jax.Array,
    positions_B: jax.Array,
    *,
    parts: int,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """See `block_attention.attend_rows`; each row's visible keys are divided into `parts`.

    A part without keys has weight zero, and a row without a query is zero: all its parts are.
    """
    rows, heads, size = q_BNH.shape
    kv_heads, keys, held = pool.shape[2] // 2, keys_of(q_BNH), entries_of(pool)
    padded = max(FEWEST, pl.next_power_of_2(heads // kv_heads))
    out_BSNH, weight_BSN = pl.pallas_call(
        partial(_kernel, heads=padded, parts=parts, keys=keys, page_size=pool.shape[1], window=window),
        out_shape=(
            jax.ShapeDtypeStruct((rows, parts, heads, size), jnp.float32),
            jax.ShapeDtypeStruct((rows, parts, heads), jnp.float32),
        ),
        grid=(kv_heads, parts, rows),
        interpret=interpret,
        compiler_params=pipelined(padded, q_BNH),
        name=f"paged_attention_1x{padded}_in_{parts}",
    )(positions_B, tables_BM, q_BNH, *held)
    return pl.pallas_call(
        partial(_add_parts, parts=pl.next_power_of_2(parts)),
        out_shape=jax.ShapeDtypeStruct(q_BNH.shape, q_BNH.dtype),
        grid=(heads, rows),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4),
        name=f"paged_attention_sum_of_{parts}",
    )(weight_BSN, out_BSNH)


def _kernel(
    position_ref: Any,
    table_ref: Any,
    q_ref: Any,
    pool_ref: Any,
    *rest: Any,
    heads: int,
    parts: int,
    keys: int,
    page_size: int,
    window: int | None,
) -> None:
    """One program: a part of a row's keys for the heads of one key head, in R rows.

    The other references are the pool's scales, if it has any, and the outputs: the part's average of values,
    f32 `[B, S, N, H]`, and the logarithm of its sum of weights, f32 `[B, S, N]`, about -1e28 without a key.
    """
    *scale_refs, out_ref, weight_ref = rest
    k, part, row = (pl.program_id(axis) for axis in range(3))
    shared, size = q_ref.shape[1] // (pool_ref.shape[1] // 2), q_ref.shape[2]
    head_R = lax.broadcasted_iota(jnp.int32, (heads,), 0)
    live_R, head_R = head_R < shared, k * shared + head_R
    live_RH = jnp.broadcast_to(live_R[:, None], (heads, size))
    heads_and_lanes = head_R[:, None], lax.broadcasted_iota(jnp.int32, (size,), 0)[None, :]
    q_RH = triton.load(q_ref.at[row, *heads_and_lanes], mask=live_RH, other=0.0)
    position_R = jnp.broadcast_to(position_ref[row], (heads,))
    pages = Pages(table_ref, pool_ref, tuple(scale_refs), page_size, keys)
    top_R, total_R, out_RH = walk(q_RH, position_R, row, k, pages, window=window, part=(part, parts))
    triton.store(out_ref.at[row, part, *heads_and_lanes], average(total_R, out_RH), mask=live_RH)
    weight_R = top_R + jnp.log(jnp.maximum(total_R, 1e-30))
    triton.store(weight_ref.at[row, part, head_R], weight_R, mask=live_R)


def _add_parts(weight_ref: Any, part_ref: Any, out_ref: Any, *, parts: int) -> None:
    """One program: the parts of one row and head, weighted. XLA would launch three kernels for this."""
    n, row = pl.program_id(0), pl.program_id(1)
    part_S = lax.broadcasted_iota(jnp.int32, (parts,), 0)
    lanes_H = lax.broadcasted_iota(jnp.int32, (out_ref.shape[2],), 0)
    used_S = part_S < part_ref.shape[1]
    used_SH = jnp.broadcast_to(used_S[:, None], (parts, lanes_H.shape[0]))
    weight_S = triton.load(weight_ref.at[row, part_S, n], mask=used_S, other=-jnp.inf)
    part_SH = triton.load(part_ref.at[row, part_S[:, None], n, lanes_H[None, :]], mask=used_SH, other=0.0)
    share_S = jnp.exp(weight_S - weight_S.max())
    out_H = (part_SH * share_S[:, None]).sum(axis=0) / share_S.sum()
    triton.store(out_ref.at[row, n, lanes_H], out_H.astype(out_ref.dtype))
