"""Attention on a TPU: the ragged paged attention kernel that ships with JAX, fed from a `Batch`.

Its pools have our layout, `[P, page, 2K, H]` with a head's key and value adjacent, and its sequences are our
rows with consecutive tokens. It takes the queries of a row as the last ones of its sequence, which they
are. Cases that it does not support (see `fits`) go to the portable kernel.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from ...cache import Batch, Int8Pool, Pool
from .. import block_attention

QUERIES = 32
"""Tokens per block of queries: with 4 heads per key head, as many rows as a v5e multiplies at once."""

KEYS = 256
"""Keys fetched together. Two such blocks of 16 heads are 4 MiB, a quarter of what a kernel may use."""

TABLE_BYTES = 1 << 19
"""The maximum size of page tables in scalar memory, which is 1 MiB; 512 sequences of 128 pages fit."""

LANES = 128
"""Elements in a row of a vector register."""

_PACKED = {jnp.dtype("float32"): 1, jnp.dtype("bfloat16"): 2}
"""Elements per 32-bit word."""


def attend(q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array:
    """See `registry.AttentionKernel`; tokens of no row get zero. Rows in use hold at least one token."""
    if not fits(q_TNH, pool, batch.tables_BM):
        return block_attention.attend(q_TNH, pool, batch, window=window)
    starts_R, lengths_B = _sequences(batch)
    out_TNH = ragged_paged_attention(
        q_TNH,
        pool,
        lengths_B,
        batch.tables_BM,
        starts_R,
        jnp.maximum(batch.rows, 1)[None],
        sm_scale=1.0 / math.sqrt(q_TNH.shape[2]),
        sliding_window=window,
        num_kv_pages_per_block=max(1, min(KEYS // pool.shape[1], batch.tables_BM.shape[1])),
        num_queries_per_block=min(QUERIES, q_TNH.shape[0]),
    )
    return jnp.where((batch.positions_T >= 0)[:, None, None], out_TNH, 0)


def fits(q_TNH: jax.Array, pool: Pool, tables_BM: jax.Array) -> bool:
    """Whether the kernel takes these shapes, as found by compiling it for v5e and v6e (JAX 0.10.2).

    It needs heads of one row of lanes, queries of the pool's dtype, page tables that fit in scalar memory,
    and a token's keys and values in whole tiles: 1, 2, 4 or a multiple of 8 words of 32 bits. If there are
    more than 8 words it takes 8 at a time, and in f32 the queries of these 4 heads must be whole tiles as
    well. It supports only one scale for a whole pool.
    """
    if (
        isinstance(pool, Int8Pool)
        or q_TNH.dtype != pool.dtype
        or pool.dtype not in _PACKED
        or q_TNH.shape[2] != LANES
    ):
        return False
    entries, packed = pool.shape[2], _PACKED[pool.dtype]
    words, rest = divmod(entries, packed)
    tiled = rest == 0 and (words in (1, 2, 4) or words % 8 == 0)
    paired = packed > 1 or words <= 8 or q_TNH.shape[1] // (entries // 2) % 2 == 0
    rows, columns = tables_BM.shape
    return tiled and paired and 4 * rows * _multiple(columns, LANES) <= TABLE_BYTES


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def _sequences(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Where rows begin, i32 `[B + 1]`, and how many keys each row's last token attends to, i32 `[B]`.

    The kernel prefetches a row's keys and waits for them when it reaches the row. So each row has a key, and
    a step without rows has one row with one padding token: otherwise a fetch would outlive the kernel.
    """
    starts_R = jnp.where(batch.rows > 0, batch.starts_R, jnp.minimum(jnp.arange(batch.starts_R.shape[0]), 1))
    last_B = batch.positions_T.at[starts_R[1:] - 1].get(mode="clip")
    return starts_R.astype(jnp.int32), jnp.maximum(last_B + 1, 1)
