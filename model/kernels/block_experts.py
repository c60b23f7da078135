"""Mixture of experts in portable XLA: tokens sorted by expert, then a loop over the blocks that are in use.

Each block holds rows of one expert only, so the work follows the tokens and not the experts, although every
shape is static. The idea of grouping by sorting and of padding each group to whole blocks is MegaBlocks'
(Gale et al. 2022, arXiv:2211.15841).
"""

import jax
import jax.numpy as jnp
from jax import lax

from .linear import int8_padded, plain
from .registry import ExpertWeights

BLOCK = 32
"""Rows to a block, where there are so many."""


def block_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """See `registry.ExpertsKernel`."""
    (tokens, width), choices, count = x_TD.shape, expert_TX.shape[1], experts.gate.shape[0]
    rows = tokens * choices
    block = min(BLOCK, rows)
    expert_R = expert_TX.reshape(-1)
    order_R = jnp.argsort(expert_R, stable=True).astype(jnp.int32)
    size_E = jnp.bincount(expert_R, length=count + 1)[:count].astype(jnp.int32)
    blocks_E = -(-size_E // block)
    last_E = jnp.cumsum(blocks_E)
    start_E = jnp.cumsum(size_E) - size_E

    def one(i: jax.Array, y_RD: jax.Array) -> jax.Array:
        e = jnp.searchsorted(last_E, i, side="right").astype(jnp.int32)
        at = start_E[e] + (i - (last_E[e] - blocks_E[e])) * block
        place_C = at + jnp.arange(block, dtype=jnp.int32)
        inside_C = place_C < start_E[e] + size_E[e]
        row_C = jnp.where(inside_C, order_R.at[place_C].get(mode="clip"), rows)
        x_CD = x_TD.at[row_C // choices].get(mode="fill", fill_value=0)
        return y_RD.at[row_C].set(_expert(x_CD, experts, e), mode="drop")

    y_RD = lax.fori_loop(0, last_E[-1], one, jnp.zeros((rows, width), x_TD.dtype))
    y_TXD = y_RD.reshape(tokens, choices, width).astype(jnp.float32)
    held_TX = jnp.where(expert_TX < count, weight_TX, 0.0)
    return jnp.einsum("TXD,TX->TD", y_TXD, held_TX).astype(x_TD.dtype)


def _expert(x_CD: jax.Array, experts: ExpertWeights, e: jax.Array) -> jax.Array:
    """One expert's SwiGLU of some rows."""
    gate_CF = _product(x_CD, experts.gate, experts.gate_scale, e)
    up_CF = _product(x_CD, experts.up, experts.up_scale, e)
    return _product(jax.nn.silu(gate_CF) * up_CF, experts.down, experts.down_scale, e)


def _product(x_CD: jax.Array, w_EDF: jax.Array, scale_EF: jax.Array | None, e: jax.Array) -> jax.Array:
    w_DF = lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)
    if scale_EF is None:
        return plain(x_CD, w_DF)
    return int8_padded(x_CD, w_DF, lax.dynamic_index_in_dim(scale_EF, e, keepdims=False))
