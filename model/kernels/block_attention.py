"""Grouped-query attention over a paged cache, in portable XLA.

Both forms process the pages of a sequence in blocks of about 128 tokens with an online softmax (Milakov and
Gimelshein 2018, arXiv:1805.02867), and both stop at the last block that holds a visible key: the work follows
the sequences' lengths although every shape is static. `attend_rows` takes one query per row, all rows
together; `attend_tiles` takes runs of queries, one tile after another; `attend` passes each token of a step
to one of them. Keys of the current step are already in the pool.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from ..cache import TILE, Batch, Int8Pool, Pool, Tiles

BLOCK_TOKENS = 128
"""Keys per iteration: long enough to keep the matrix units busy, short enough to stay in cache."""
WIDE_BLOCK_TOKENS = 256
"""The same if four tiles are processed together."""
ROWS_BLOCK_TOKENS = 64
"""The same if many rows have one query each: the keys of all rows in an iteration should stay in cache."""

WIDE = 4
"""Tiles of one sequence that are processed as one: products of more rows are faster."""

GROUP_ROWS = 8
"""Rows of a mixed step that are processed together."""

_MASKED = -1e30
_FLOOR = -1e28
"""The initial running maximum: far enough above `_MASKED` that a block without a visible key has weight zero,
instead of adding values of any size that a later block would have to cancel."""


def attend(q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array:
    """Attention of every token of a step to its own sequence: rows with one token together, prompts in
    tiles."""
    if batch.tiles is None:
        return attend_rows(q_TNH, pool, batch.tables_BM, batch.positions_T, window=window)
    tile = min(TILE, q_TNH.shape[0])
    out_TNH = attend_tiles(
        q_TNH, pool, batch.tables_BM, batch.positions_T, batch.tiles, tile=tile, window=window
    )
    q_BNH = q_TNH.at[batch.singles_B].get(mode="fill", fill_value=0)
    positions_B = batch.positions_T.at[batch.singles_B].get(mode="fill", fill_value=-1)
    out_BNH = _attend_used_rows(q_BNH, pool, batch.tables_BM, positions_B, window=window)
    return out_TNH.at[batch.singles_B].set(out_BNH, mode="drop")


def _attend_used_rows(
    q_BNH: jax.Array, pool: Pool, tables_BM: jax.Array, positions_B: jax.Array, *, window: int | None
) -> jax.Array:
    """As `attend_rows`, a few rows at a time, up to the last one in use: a mixed step has rows for all
    slots."""
    rows = q_BNH.shape[0]
    if rows % GROUP_ROWS or rows == GROUP_ROWS:
        return attend_rows(q_BNH, pool, tables_BM, positions_B, window=window)

    def one(i: jax.Array, out_BNH: jax.Array) -> jax.Array:
        start = i * GROUP_ROWS
        q, tables, positions = (
            lax.dynamic_slice_in_dim(x, start, GROUP_ROWS) for x in (q_BNH, tables_BM, positions_B)
        )
        out = attend_rows(q, pool, tables, positions, window=window)
        return lax.dynamic_update_slice_in_dim(out_BNH, out, start, axis=0)

    number_B = jnp.arange(1, rows + 1, dtype=jnp.int32)
    used = jnp.max(jnp.where(positions_B >= 0, number_B, 0))
    return lax.fori_loop(0, (used + GROUP_ROWS - 1) // GROUP_ROWS, one, jnp.zeros_like(q_BNH))


def attend_rows(
    q_BNH: jax.Array,
    pool: Pool,
    tables_BM: jax.Array,
    positions_B: jax.Array,
    *,
    window: int | None,
) -> jax.Array:
    """Attention of one query per row to that row's pages.

    Args:
      q_BNH: queries. pool: `[P, page, 2K, H]`. tables_BM: i32 `[B, M]`, page numbers.
      positions_B: i32 `[B]`, each query's position; -1 for a row without a query; its output is zero.
      window: how many positions, including its own, a query attends to; None: all before it.

    Returns:
      `[B, N, H]` in q's dtype.
    """
    q_BKGTH = _group(q_BNH[:, None], pool)
    out_BKGTH = _online_softmax(q_BKGTH, pool, tables_BM, positions_B[:, None], window, ROWS_BLOCK_TOKENS)
    return _ungroup(out_BKGTH)[:, 0].astype(q_BNH.dtype)


def attend_tiles(
    q_TNH: jax.Array,
    pool: Pool,
    tables_BM: jax.Array,
    positions_T: jax.Array,
    tiles: Tiles,
    *,
    tile: int,
    window: int | None,
) -> jax.Array:
    """Runs of up to `tile` queries of one sequence each; tokens outside every tile get zero.

    Tiles of one sequence are consecutive: if there are three or more, four are processed as one.

    Args are those of `attend_rows`, with T tokens for B rows. Returns `[T, N, H]` in q's dtype.
    """
    tokens = q_TNH.shape[0]
    row_C, length_C = (jnp.pad(x_C, (0, WIDE)) for x_C in (tiles.row_C, tiles.length_C))

    def attend_run(
        out_TNH: jax.Array, i: jax.Array, length: jax.Array, queries: int, block: int
    ) -> jax.Array:
        """The output with a run of `queries` queries filled in; `length` of them are in use."""
        offset = jnp.arange(queries, dtype=jnp.int32)
        index = jnp.where(offset < length, tiles.start_C[i] + offset, tokens)
        q_QNH = q_TNH.at[index].get(mode="fill", fill_value=0)
        position_Q = positions_T.at[index].get(mode="fill", fill_value=-1)
        q_BKGQH = _group(q_QNH[None], pool)
        table_BM = tables_BM[row_C[i]][None]
        out_BKGQH = _online_softmax(q_BKGQH, pool, table_BM, position_Q[None], window, block)
        return out_TNH.at[index].set(_ungroup(out_BKGQH)[0].astype(out_TNH.dtype), mode="drop")

    def one(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, out_TNH = carry
        rows_W, lengths_W = (lax.dynamic_slice(x_C, (i,), (WIDE,)) for x_C in (row_C, length_C))
        same_W = (rows_W == rows_W[0]) & (i + jnp.arange(WIDE, dtype=jnp.int32) < tiles.count)

        def narrow() -> tuple[jax.Array, jax.Array]:
            return i + 1, attend_run(out_TNH, i, lengths_W[0], tile, BLOCK_TOKENS)

        def wide() -> tuple[jax.Array, jax.Array]:
            length = jnp.where(same_W, lengths_W, 0).sum()
            out = attend_run(out_TNH, i, length, WIDE * tile, WIDE_BLOCK_TOKENS)
            return i + same_W.sum(dtype=jnp.int32), out

        return narrow() if WIDE * tile > tokens else lax.cond(same_W[2], wide, narrow)

    start = jnp.int32(0), jnp.zeros_like(q_TNH)
    return lax.while_loop(lambda carry: carry[0] < tiles.count, one, start)[1]


def _group(q_BTNH: jax.Array, pool: Pool) -> jax.Array:
    """Scales queries by H^-1/2 and groups them by key head: f32 `[B, K, G, T, H]`."""
    b, t, n, h = q_BTNH.shape
    k = pool.shape[2] // 2
    scaled = q_BTNH.astype(jnp.float32) * (1.0 / math.sqrt(h))
    return scaled.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)


def _ungroup(out_BKGTH: jax.Array) -> jax.Array:
    b, k, g, t, h = out_BKGTH.shape
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, h)


def _online_softmax(
    q_BKGTH: jax.Array,
    pool: Pool,
    tables_BM: jax.Array,
    positions_BT: jax.Array,
    window: int | None,
    block_tokens: int,
) -> jax.Array:
    """The loop: running maximum, running sum and weighted values over blocks of pages."""
    page_size = pool.shape[1]
    pages = max(1, min(block_tokens // page_size, tables_BM.shape[1]))
    block = pages * page_size
    b, k, g, t, h = q_BKGTH.shape
    tables_BM = _pad_columns(tables_BM, pages)

    def one(i, carry):
        top, total, out = carry
        table_B = lax.dynamic_slice_in_dim(tables_BM, i * pages, pages, axis=1)
        kv, key_scale, value_scale = _fetch_entries(pool, table_B, block)
        scores = jnp.einsum("BKGTH,BSKH->BKGTS", q_BKGTH, kv[..., 0, :]) * key_scale
        keys_S = i * block + jnp.arange(block, dtype=jnp.int32)
        seen_BTS = _visible(keys_S, positions_BT, window)
        scores = jnp.where(seen_BTS[:, None, None], scores, _MASKED)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        values = jnp.einsum("BKGTS,BSKH->BKGTH", weights * value_scale, kv[..., 1, :])
        return new_top, total * shrink + weights.sum(-1), out * shrink[..., None] + values

    first, last = _block_range(positions_BT, block, window)
    zero = jnp.zeros((b, k, g, t), jnp.float32)
    start = (zero + _FLOOR, zero, jnp.zeros((b, k, g, t, h), jnp.float32))
    _, total, out = lax.fori_loop(first, last, one, start)
    used_BT = (positions_BT >= 0)[:, None, None, :, None]
    return jnp.where(used_BT, out / jnp.maximum(total, 1e-30)[..., None], 0.0)


def _fetch_entries(
    pool: Pool, pages: jax.Array, block: int
) -> tuple[jax.Array, jax.Array | float, jax.Array | float]:
    """Keys and values of some pages, f32 `[B, S, K, 2, H]`, and the factors on scores and weights,
    `[B, K, G, T, S]`."""
    b, heads, size = pages.shape[0], pool.shape[2] // 2, pool.shape[3]
    if not isinstance(pool, Int8Pool):
        return _fetch(pool, pages).reshape(b, block, heads, 2, size).astype(jnp.float32), 1.0, 1.0
    kv = _fetch(pool.values, pages).reshape(b, block, heads, 2, size).astype(jnp.float32)
    scale_BSK2 = _fetch(pool.scales, pages).reshape(b, block, heads, 2)
    key_scale, value_scale = jnp.moveaxis(scale_BSK2, (3, 2), (0, 2))[:, :, :, None, None, :]
    return kv, key_scale, value_scale


def _fetch(pool: jax.Array, pages: jax.Array) -> jax.Array:
    """Pages `[B, M]` by number, each as one flat run: on a CPU XLA copies those a third faster than pages
    with four axes. For a single row it would copy the whole pool first.

    Page tables hold only existing pages, so nothing is checked.
    """
    flat = pool if pages.shape[0] == 1 else pool.reshape(pool.shape[0], -1)
    return flat.at[pages].get(mode="promise_in_bounds")


def _visible(keys_S: jax.Array, positions_BT: jax.Array, window: int | None) -> jax.Array:
    """Causal, and within the window: bool `[B, T, S]`."""
    distance_BTS = positions_BT[:, :, None] - keys_S[None, None, :]
    seen_BTS = distance_BTS >= 0
    return seen_BTS if window is None else seen_BTS & (distance_BTS < window)


def _block_range(
    positions_BT: jax.Array, block: int, window: int | None
) -> tuple[jax.Array | int, jax.Array]:
    """The first block that any query attends to, and one past the last."""
    last = jnp.max(positions_BT) // block + 1
    if window is None:
        return 0, last
    lowest = jnp.min(jnp.where(positions_BT < 0, jnp.iinfo(jnp.int32).max, positions_BT))
    return jnp.maximum(lowest - window + 1, 0) // block, last


def _pad_columns(tables_BM: jax.Array, multiple: int) -> jax.Array:
    """Pads page tables to whole blocks, so that a slice never reaches past their end."""
    missing = -tables_BM.shape[1] % multiple
    return jnp.pad(tables_BM, ((0, 0), (0, missing))) if missing else tables_BM
