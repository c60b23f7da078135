"""Grouped-query self-attention over the paged cache (Ainslie et al. 2023, arXiv:2305.13245).

Projects, applies rotary embedding, stores this step's keys and values, and calls the kernel. MHA and MQA are
the cases K = N and K = 1. On a mesh each device has its share of the heads.
"""

import jax
import jax.numpy as jnp

from .cache import Batch, Pool, write_pages
from .config import ModelConfig
from .layers import Linears
from .rotary import rotate
from .sharding import share_config
from .target import Target


class Attention(Linears):
    """One layer's attention: hidden and pool in, hidden and pool out."""

    def __init__(self, config: ModelConfig, target: Target, *, dtype: jnp.dtype) -> None:
        super().__init__(target)
        bias, outputs = config.attention_bias, _outputs(config)
        self.add_columns(config.width, outputs, dtype=dtype, bias=bias)
        self.add("o", (outputs["q"], config.width), dtype=dtype, bias=bias)
        self.share, self.window = share_config(config, target.shards), config.window

    def __call__(
        self, x_TD: jax.Array, pool: Pool, batch: Batch, rotary: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, Pool]:
        """Returns the layer's `[T, D]` and the pool with this step's keys and values."""
        tokens = batch.tokens
        q_TNH, k_TKH, v_TKH = map(self._heads, self.columns(x_TD, tokens, _outputs(self.share)))
        q_TNH, k_TKH = rotate(q_TNH, *rotary), rotate(k_TKH, *rotary)
        pool = write_pages(pool, k_TKH, v_TKH, batch.entries_T)
        with jax.named_scope("attend"):
            out_TNH = self.target.kernels.attention(q_TNH, pool, batch, window=self.window)
        return self.rows(out_TNH.reshape(x_TD.shape[0], -1), tokens, "o"), pool

    def _heads(self, y_TF: jax.Array) -> jax.Array:
        return y_TF.reshape(y_TF.shape[0], -1, self.share.head_size)


def _outputs(config: ModelConfig) -> dict[str, int]:
    """The outputs of each map for complete inputs."""
    n, k = config.heads * config.head_size, config.kv_heads * config.head_size
    return {"q": n, "k": k, "v": k}
