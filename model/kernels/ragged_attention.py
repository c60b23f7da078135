"""Attention on a TPU: the ragged paged attention kernel that ships with JAX, fed from a `Batch`.

Its pools are ours, `[P, page, 2K, H]` with a head's key and value side by side, and its sequences are our
rows: tokens of one behind those of the other. It sees the queries of a row as the last ones of its sequence,
which they are. What it cannot do (see `fits`) goes to the portable kernel.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from ..cache import Batch, Int8Pool, Pool
from . import block_attention

QUERIES = 32
"""Tokens to a block of queries: with 4 heads to a key head, as many rows as a v5e multiplies at once."""

KEYS = 256
"""Keys fetched together. Two such blocks of 16 heads are 4 MiB, a quarter of what a kernel may use."""

TABLE_BYTES = 1 << 19
"""The most that page tables may take of scalar memory, which is 1 MiB; 512 sequences of 128 pages do."""

LANES = 128
"""Numbers in a vector register's row."""

_PACKED = {jnp.dtype("float32"): 1, jnp.dtype("bfloat16"): 2}
"""Numbers to a 32-bit word."""


def attend(q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array:
    """See `registry.AttentionKernel`; tokens of no row get zero. Rows in use hold a token at least."""
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

    It wants heads of one row of lanes, queries as wide as the pool, page tables that scalar memory holds, and
    a token's keys and values in whole tiles: 1, 2, 4 or a multiple of 8 words of 32 bits. Of more than 8 it
    takes 8 at a time, and in f32 the queries of these 4 heads must be whole tiles as well. Of scales it knows
    one for a whole pool only.
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
    """Where rows begin, i32 `[B + 1]`, and how many keys each row's last token sees, i32 `[B]`.

    The kernel fetches a row's keys ahead and waits for them where the row comes up. So each row has a key,
    and a step without rows has one of a single token, padding: else a fetch would outlive the kernel.
    """
    starts_R = jnp.where(batch.rows > 0, batch.starts_R, jnp.minimum(jnp.arange(batch.starts_R.shape[0]), 1))
    last_B = batch.positions_T.at[starts_R[1:] - 1].get(mode="clip")
    return starts_R.astype(jnp.int32), jnp.maximum(last_B + 1, 1)
