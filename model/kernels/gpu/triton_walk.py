"""One program's way through the keys of one sequence, inside Pallas kernels for Triton.

It iterates over the pages of a page table with an online softmax in f32 (Milakov and Gimelshein 2018,
arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135), either over all keys that the queries see or over one of
several equal parts of them. int8 keys and values are widened for the products; their scales are applied to
scores and weights. A program's queries are its R rows: all heads that share one key head, of one query or
more.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...cache import Pool

KEY_BYTES = 16384
"""Bytes of keys, and of values, per iteration: shared memory holds two iterations of both."""

FEWEST = 16
"""The minimum size of a side of Triton's product."""

SHALLOW = triton.CompilerParams(num_warps=4, num_stages=2)
"""For a program with many queries, because these are in shared memory as well: one iteration at a time."""

DEEP = triton.CompilerParams(num_warps=4, num_stages=5)
"""Triton divides the stages between page numbers and what is found by them: page numbers are loaded two
iterations before keys and values, and these two iterations before they are multiplied."""

_MASKED, _FLOOR = -1e30, -1e28
"""As in `block_attention`: a block without a visible key has weight zero."""

Sums = tuple[jax.Array, jax.Array, jax.Array]
"""Running maximum and sum of weights, f32 `[R]`, and weighted values, f32 `[R, H]`."""


class Pages(NamedTuple):
    """What a program reads, as references.

    Attributes:
      table: i32 `[B, M]`. pool: `[P * page, 2K, H]`. scales: f32 `[P * page, 2K]`, if the pool is in int8.
      size: tokens of a page. keys: per iteration.
    """

    table: Any
    pool: Any
    scales: tuple[Any, ...]
    size: int
    keys: int


def entries_of(pool: Pool) -> tuple[jax.Array, ...]:
    """The pool's arrays with an entry for each token: `[P * page, 2K, …]`."""
    return tuple(x.reshape(-1, *x.shape[2:]) for x in jax.tree.leaves(pool))


def keys_of(q_TNH: jax.Array) -> int:
    """The number of keys in an iteration, a power of two."""
    return max(FEWEST, min(64, KEY_BYTES // (q_TNH.shape[-1] * q_TNH.dtype.itemsize)))


def pipelined(heads: int, q_TNH: jax.Array) -> triton.CompilerParams:
    """How a program with one query of some heads is compiled: it may take 99 KiB of shared memory (L4)."""
    return DEEP if heads * q_TNH.shape[-1] * q_TNH.dtype.itemsize <= KEY_BYTES else SHALLOW


def walk(
    q_RH: jax.Array,
    position_R: jax.Array,
    row: jax.Array,
    k: jax.Array,
    pages: Pages,
    *,
    window: int | None,
    part: tuple[jax.Array, int] | None = None,
) -> Sums:
    """What R queries of one sequence find in its keys; rows without a key in reach get a sum of zero.

    Args:
      position_R: -1 for a row without a query. row: of the page table. k: the key head.
      part: the number of this part of the keys, and of how many; None for all keys.
    """

    def iterate(i: jax.Array, sums: Sums) -> Sums:
        key_S = i * pages.keys + lax.broadcasted_iota(jnp.int32, (pages.keys,), 0)
        k_SH, v_SH, scales = _fetch(pages, row, k, key_S)
        distance_RS = position_R[:, None] - key_S[None, :]
        seen_RS = distance_RS >= 0 if window is None else (distance_RS >= 0) & (distance_RS < window)
        return _add_block(q_RH, k_SH.astype(q_RH.dtype), v_SH.astype(q_RH.dtype), scales, seen_RS, *sums)

    first, last = _blocks(position_R, pages.keys, window)
    if part is not None:
        first, last = _narrowed(first, last, *part)
    zero_R = jnp.zeros(q_RH.shape[0], jnp.float32)
    return lax.fori_loop(first, last, iterate, (zero_R + _FLOOR, zero_R, jnp.zeros(q_RH.shape, jnp.float32)))


def average(total_R: jax.Array, out_RH: jax.Array) -> jax.Array:
    """Weighted values over the sum of weights; zero for a row without a key."""
    return out_RH / jnp.maximum(total_R, 1e-30)[:, None]


def _blocks(position_R: jax.Array, keys: int, window: int | None) -> tuple[jax.Array | int, jax.Array]:
    """The first block that any of the queries attends to, and one past the last."""
    last = pl.cdiv(jnp.max(position_R) + 1, keys)
    if window is None:
        return 0, last
    lowest = jnp.min(jnp.where(position_R < 0, jnp.iinfo(jnp.int32).max, position_R))
    return jnp.maximum(lowest - window + 1, 0) // keys, last


def _narrowed(
    first: jax.Array | int, last: jax.Array, part: jax.Array, parts: int
) -> tuple[jax.Array, jax.Array]:
    """The blocks of one of several equal parts; the last parts have fewer, or none."""
    each = pl.cdiv(jnp.maximum(last - first, 0), parts)
    start = first + part * each
    return start, jnp.minimum(start + each, last)


def _fetch(
    pages: Pages, row: jax.Array, k: jax.Array, key_S: jax.Array
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Keys and values `[S, H]` of some positions, and their scales `[1, S]`, if there are any."""
    page_S, offset_S = _divided(key_S, pages.size)
    page_S = jnp.minimum(page_S, pages.table.shape[1] - 1)
    slot_S = pages.table[row, page_S] * pages.size + offset_S
    lanes_H = lax.broadcasted_iota(jnp.int32, (pages.pool.shape[2],), 0)
    k_SH, v_SH = (pages.pool[slot_S[:, None], 2 * k + kind, lanes_H[None, :]] for kind in (0, 1))
    return k_SH, v_SH, tuple(ref[slot_S, 2 * k + kind][None] for ref in pages.scales for kind in (0, 1))


def _divided(x_S: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of numbers that are not negative: `//` and `%` would also look at the sign."""
    if size & (size - 1):
        return lax.div(x_S, jnp.int32(size)), lax.rem(x_S, jnp.int32(size))
    return x_S >> (size.bit_length() - 1), x_S & (size - 1)


def _add_block(
    q_RH: jax.Array,
    k_SH: jax.Array,
    v_SH: jax.Array,
    scales: tuple[jax.Array, ...],
    seen_RS: jax.Array,
    top_R: jax.Array,
    total_R: jax.Array,
    out_RH: jax.Array,
) -> Sums:
    """Running maximum, sum and weighted values after S more keys; `scales` are the keys' and the values'."""
    key_scale_1S, value_scale_1S = scales or (1.0, 1.0)
    exact = lax.Precision.HIGHEST if q_RH.dtype == jnp.float32 else None
    score_RS = triton.dot(q_RH, k_SH.T, precision=exact) * (1.0 / math.sqrt(q_RH.shape[1])) * key_scale_1S
    score_RS = jnp.where(seen_RS, score_RS, _MASKED)
    new_R = jnp.maximum(top_R, score_RS.max(axis=1))
    weight_RS, shrink_R = jnp.exp(score_RS - new_R[:, None]), jnp.exp(top_R - new_R)
    value_RH = triton.dot((weight_RS * value_scale_1S).astype(v_SH.dtype), v_SH, precision=exact)
    return new_R, total_R * shrink_R + weight_RS.sum(axis=1), out_RH * shrink_R[:, None] + value_RH
