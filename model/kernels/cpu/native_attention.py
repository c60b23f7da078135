"""Attention by the native kernels: each token reads its sequence's pages in place.

A token's sums have one order, whether it is decoded or part of a prompt and whatever else is in the step:
blocks of keys begin at multiples of 64 positions.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ...cache import Batch, Int8Pool, Pool
from .. import block_attention as portable
from ..panels import PANEL

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.int8)


def attend(q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array:
    """Attention of every token of a step to its own sequence; the portable one if it does not fit."""
    if not fits(q_TNH, pool):
        return portable.attend(q_TNH, pool, batch, window=window)
    values, scales = pool if isinstance(pool, Int8Pool) else (pool, jnp.zeros((0, 0, 0), jnp.float32))
    call = jax.ffi.ffi_call("distaff_attention", jax.ShapeDtypeStruct(q_TNH.shape, jnp.float32))
    out_TNH = call(
        *(q_TNH.astype(jnp.float32), values, scales),
        *(batch.positions_T, batch.tables_BM, batch.starts_R, batch.rows),
        window=np.int64(window or 0),
        scale=np.float32(1 / math.sqrt(q_TNH.shape[2])),
    )
    return out_TNH.astype(q_TNH.dtype)


def fits(q_TNH: jax.Array, pool: Pool) -> bool:
    """Whether heads are whole panels, and the pool's type is known."""
    values = pool.values if isinstance(pool, Int8Pool) else pool
    return q_TNH.shape[2] % PANEL == 0 and values.dtype in _DTYPES
