"""The paged key/value cache, and where one step's tokens are in it.

The cache is a pool of pages per layer, `[P, page, 2K, H]`: a head's key and value are adjacent, so that a
token's entry is one contiguous row. A sequence owns pages in any order; its page table lists them. Page 0 is
never owned: padding writes and reads there. `runtime/policy/pages.py` decides which sequence owns which page.

An int8 cache rounds each key and each value of a token with its own scale when it is stored: what a token
attends to does not depend on how its sequence was split into steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .config import ModelConfig
from .quantize import quantize_last

TRASH_PAGE = 0
"""The page that padding points to; it is never assigned to a sequence."""

TILE = 64
"""Queries per tile in a mixed step (fewer where the step itself is smaller)."""

REACHED = 1 << 31
"""Numbers of a pool that offsets of 32 bits with a sign reach."""


class Int8Pool(NamedTuple):
    """A pool of rounded keys and values: i8 `[P, page, 2K, H]`, and their scales, f32 `[P, page, 2K]`."""

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.values.shape


Pool = jax.Array | Int8Pool
"""A layer's keys and values: `[P, page, 2K, H]`."""

Cache = tuple[Pool, ...]
"""One pool per layer."""


def create_cache(
    config: ModelConfig,
    pages: int,
    page_size: int,
    dtype: jnp.dtype,
    zeros: Callable[[Sequence[jax.ShapeDtypeStruct]], list[jax.Array]],
) -> Cache:
    """Empty pools.

    Args:
      pages: the trash page among them. page_size: tokens of each.
      zeros: the kernel that creates them, see `registry.ZerosKernel`.
    """
    shape = (pages, page_size, 2 * config.kv_heads, config.head_size)
    values = zeros([jax.ShapeDtypeStruct(shape, dtype)] * config.layers)
    if dtype != jnp.int8:
        return tuple(values)
    scales = zeros([jax.ShapeDtypeStruct(shape[:-1], jnp.float32)] * config.layers)
    return tuple(map(Int8Pool, values, scales))


def page_bytes(config: ModelConfig, page_size: int, dtype: jnp.dtype) -> int:
    """Bytes of one page in all layers."""
    entry = config.head_size * jnp.dtype(dtype).itemsize
    entry += jnp.dtype("float32").itemsize if dtype == jnp.int8 else 0
    return config.layers * page_size * 2 * config.kv_heads * entry


def write_pages(pool: Pool, k_TKH: jax.Array, v_TKH: jax.Array, entries_T: jax.Array) -> Pool:
    """Stores each token's key and value at its entry (page * page_size + offset) of a pool.

    Only finite values are stored: a row that overflowed fails because of its own logits, and its pages must
    not affect the sequence that owns them next (0 * NaN is NaN, even if masked).
    """
    kv_TEH = jnp.stack([k_TKH, v_TKH], axis=2).reshape(-1, *pool.shape[2:])
    if not isinstance(pool, Int8Pool):
        return _stored(pool, jnp.nan_to_num(kv_TEH.astype(pool.dtype)), entries_T)
    rounded_TEH, scale_TE = quantize_last(jnp.nan_to_num(kv_TEH))
    return Int8Pool(_stored(pool.values, rounded_TEH, entries_T), _stored(pool.scales, scale_TE, entries_T))


def _stored(pool: jax.Array, values: jax.Array, entries_T: jax.Array) -> jax.Array:
    flat = pool.reshape(-1, *pool.shape[2:])
    return flat.at[entries_T].set(values, mode="drop").reshape(pool.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Runs of query tokens of one sequence each, for prompts in a mixed step.

    Attributes:
      start_C: i32 `[C]`, index into T of the tile's first token.
      length_C: i32 `[C]`, number of tokens, at most the tile size.
      row_C: i32 `[C]`, the tile's row of the page tables.
      count: i32 `[]`, number of tiles in use.
    """

    start_C: jax.Array
    length_C: jax.Array
    row_C: jax.Array
    count: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """Where one step's T tokens are: in their sequences, in the cache, and in attention's tiles.

    Attributes:
      positions_T: i32 `[T]`, absolute positions in their sequences.
      lengths_T: i32 `[T]`, see `rotary.rotary_tables`.
      entries_T: i32 `[T]`, the entries where keys and values are stored; padding points into the trash page.
      tables_BM: i32 `[B, M]`, the pages of each row's sequence, in order.
      starts_R: i32 `[B + 1]`, where each row's tokens begin in T; the last entry is where the last row ends.
        Rows are consecutive. rows: i32 `[]`, how many of the B rows are in use; these come first.
      singles_B: i32 `[B]`, index into T of a row's only token; T if the row does not have exactly one.
      tiles: the tokens of rows with more than one; None where every row has exactly one, in order.
    """

    positions_T: jax.Array
    lengths_T: jax.Array
    entries_T: jax.Array
    tables_BM: jax.Array
    starts_R: jax.Array
    rows: jax.Array
    singles_B: jax.Array
    tiles: Tiles | None

    @property
    def tokens(self) -> jax.Array:
        """How many of the T tokens are in use, i32 `[]`; these come first."""
        return self.starts_R[self.rows]
