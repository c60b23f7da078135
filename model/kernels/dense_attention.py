"""Attention among the tokens of whole sequences, which JAX can differentiate: for training, not for serving.

Each sequence of the batch is one page of the pool, all of one length: so no table and no loop is needed.
"""

import jax

from ..cache import Batch, Int8Pool, Pool


def attend(q_TNH: jax.Array, pool: Pool, batch: Batch, *, window: int | None) -> jax.Array:
    """See `registry.AttentionKernel`, of B x S tokens: S of each sequence, whose page has S entries.

    Tokens after a sequence's end are computed like the others; none before them attends to them.
    """
    assert not isinstance(pool, Int8Pool), "rounded keys have no gradient"
    rows, size, heads, width = pool.shape
    kv_BSK2H = pool.reshape(rows, size, heads // 2, 2, width)
    out_BSNH = jax.nn.dot_product_attention(
        q_TNH.reshape(rows, size, -1, width),
        kv_BSK2H[:, :, :, 0],
        kv_BSK2H[:, :, :, 1],
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
    )
    return out_BSNH.reshape(q_TNH.shape)
