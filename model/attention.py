"""Grouped-query self-attention over the paged cache (Ainslie et al. 2023, arXiv:2305.13245).

Projects, normalises heads where the model does (Qwen 3), applies rotary embedding, stores this step's keys
and values, and calls the kernel. MHA and MQA are the cases K = N and K = 1. On a mesh each device has its
share of the heads.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from .cache import Batch, Pool, write_pages
from .config import ModelConfig
from .layers import Linears
from .lora import Lora
from .rotary import Rotary, rotate
from .sharding import share_config
from .target import Target


class Attention(Linears):
    """One layer's attention: hidden and pool in, hidden and pool out."""

    def __init__(self, config: ModelConfig, layer: int, target: Target, *, dtype: jnp.dtype) -> None:
        super().__init__(target)
        bias, outputs = config.attention_bias, _outputs(config)
        self.add_columns(config.width, outputs, dtype=dtype, bias=bias)
        self.add("o", (outputs["q"], config.width), dtype=dtype, bias=bias and config.output_bias)
        if config.head_norms:
            self.q_norm = nnx.Param(jnp.ones(config.head_size, dtype))
            self.k_norm = nnx.Param(jnp.ones(config.head_size, dtype))
        self.share = share_config(config, target.shards)
        self.window = None if layer in config.full_layers else config.window
        self.rotated = layer not in config.unrotated_layers

    def __call__(
        self, x_TD: jax.Array, pool: Pool, batch: Batch, rotary: Rotary, lora: Lora | None = None
    ) -> tuple[jax.Array, Pool]:
        """Returns the layer's `[T, D]` and the pool with this step's keys and values."""
        tokens = batch.tokens
        q_TNH, k_TKH, v_TKH = map(self._heads, self.columns(x_TD, tokens, _outputs(self.share), lora))
        if self.share.head_norms:
            q_TNH, k_TKH = self._normed(q_TNH, self.q_norm), self._normed(k_TKH, self.k_norm)
        if self.rotated:
            q_TNH, k_TKH = rotate(q_TNH, rotary), rotate(k_TKH, rotary)
        pool = write_pages(pool, k_TKH, v_TKH, batch.entries_T)
        with jax.named_scope("attend"):
            q_TNH = self._scaled(q_TNH, rotary)
            out_TNH = self.target.kernels.attention(q_TNH, pool, batch, window=self.window)
        return self.rows(out_TNH.reshape(x_TD.shape[0], -1), tokens, "o", lora), pool

    def _normed(self, x_TNH: jax.Array, scale: nnx.Param[jax.Array]) -> jax.Array:
        """Every head's RMSNorm (Dehghani et al. 2023, arXiv:2302.05442, with RMSNorm)."""
        rows = x_TNH.reshape(-1, x_TNH.shape[2])
        return self.target.kernels.rms_norm(rows, scale[...], self.share.norm_epsilon).reshape(x_TNH.shape)

    def _scaled(self, q_TNH: jax.Array, rotary: Rotary) -> jax.Array:
        """Queries whose products with keys, divided by sqrt(H) as kernels do, are the scores."""
        if rotary.growth_T is not None:
            q_TNH = q_TNH * rotary.growth_T.astype(q_TNH.dtype)[:, None, None]
        if self.share.attention_scale is not None:
            q_TNH = q_TNH * (self.share.attention_scale * math.sqrt(self.share.head_size))
        return q_TNH

    def _heads(self, y_TF: jax.Array) -> jax.Array:
        return y_TF.reshape(y_TF.shape[0], -1, self.share.head_size)


def _outputs(config: ModelConfig) -> dict[str, int]:
    """The outputs of each map for complete inputs."""
    n, k = config.heads * config.head_size, config.kv_heads * config.head_size
    return {"q": n, "k": k, "v": k}
