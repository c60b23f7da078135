"""Grouped-query self-attention over the paged cache (Ainslie et al. 2023, arXiv:2305.13245).

Projects, turns by position, stores this step's keys and values, and asks the kernel. MHA and MQA are the
cases K = N and K = 1.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from .cache import Batch, write_pages
from .config import ModelConfig
from .kernels.paged_attention import attend_rows, attend_tiles
from .layers import linear, random_weight
from .rotary import rotate

TILE = 64
"""Queries per tile in a mixed step (fewer where the step itself is smaller)."""


class Attention(nnx.Module):
    """One layer's attention: hidden and pool in, hidden and pool out."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        n, k = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q = random_weight(rngs, (config.width, n), dtype)
        self.k = random_weight(rngs, (config.width, k), dtype)
        self.v = random_weight(rngs, (config.width, k), dtype)
        self.o = random_weight(rngs, (n, config.width), dtype)
        if config.attention_bias:
            self.q_bias = nnx.Param(jnp.zeros(n, dtype))
            self.k_bias = nnx.Param(jnp.zeros(k, dtype))
            self.v_bias = nnx.Param(jnp.zeros(k, dtype))
            self.o_bias = nnx.Param(jnp.zeros(config.width, dtype))
        self.config = config

    def __call__(
        self, x_TD: jax.Array, pool: jax.Array, batch: Batch, rotary: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the layer's `[T, D]` and the pool with this step's keys and values."""
        config, bias, tokens = self.config, self.config.attention_bias, x_TD.shape[0]
        q_TF = linear(x_TD, self.q[...], self.q_bias[...] if bias else None)
        k_TF = linear(x_TD, self.k[...], self.k_bias[...] if bias else None)
        v_TF = linear(x_TD, self.v[...], self.v_bias[...] if bias else None)
        q_TNH = rotate(q_TF.reshape(tokens, config.heads, config.head_size), *rotary)
        k_TKH = rotate(k_TF.reshape(tokens, config.kv_heads, config.head_size), *rotary)
        v_TKH = v_TF.reshape(tokens, config.kv_heads, config.head_size)
        pool = write_pages(pool, k_TKH, v_TKH, batch.slots_T)
        with jax.named_scope("attend"):
            out_TNH = attend(q_TNH, pool, batch, window=config.window)
        out_TF = out_TNH.reshape(tokens, -1)
        return linear(out_TF, self.o[...], self.o_bias[...] if bias else None), pool


def attend(q_TNH: jax.Array, pool: jax.Array, batch: Batch, *, window: int | None) -> jax.Array:
    """Every token of a step against its own sequence: rows with one token together, prompts in tiles."""
    if batch.tiles is None:
        return attend_rows(q_TNH, pool, batch.tables_BM, batch.positions_T, window=window)
    tile = min(TILE, q_TNH.shape[0])
    out_TNH = attend_tiles(
        q_TNH, pool, batch.tables_BM, batch.positions_T, batch.tiles, tile=tile, window=window
    )
    q_BNH = q_TNH.at[batch.singles_B].get(mode="fill", fill_value=0)
    positions_B = batch.positions_T.at[batch.singles_B].get(mode="fill", fill_value=-1)
    out_BNH = attend_rows(q_BNH, pool, batch.tables_BM, positions_B, window=window)
    return out_TNH.at[batch.singles_B].set(out_BNH, mode="drop")
