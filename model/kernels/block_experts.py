"""Mixture of experts in portable XLA: rows sorted by expert, then a loop over the blocks that are in use.

Each block holds rows of one expert only, so the work follows the tokens and not the experts, although every
shape is static. The idea of grouping by sorting and of padding each group to whole blocks is MegaBlocks'
(Gale et al. 2022, arXiv:2211.15841).

All blocks of a step have one size, which its shape decides and not the routing: a product of other sizes
may add up in another order, and a token must get the same bits in any company.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from .linear import halves, int8_padded
from .registry import ExpertWeights

SMALLEST, LARGEST = 8, 40
"""Rows to a block on a CPU. Fewer than 8 take as long, since a product begins by reading all its weights; of
more than 40, too many are padding where experts are unequally busy."""

WIDEST = 256
"""Rows to a block where each turn of the loop costs a wait for the host, and products want many rows."""


def block_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """See `registry.ExpertsKernel`. Blocks for a CPU."""
    block = block_rows(expert_TX.shape[0], expert_TX.shape[1], experts.count)
    return _in_blocks(x_TD, expert_TX, weight_TX, experts, block)


def wide_block_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """See `registry.ExpertsKernel`. Blocks for a GPU: as few as there can be."""
    return _in_blocks(x_TD, expert_TX, weight_TX, experts, min(x_TD.shape[0], WIDEST))


def block_rows(tokens: int, choices: int, count: int) -> int:
    """Rows to a block: an eighth more than an expert gets if all get the same, so that most need one.

    Never more than the tokens, each of which goes to an expert once.
    """
    share = tokens * choices * 9 // (8 * count)
    return min(tokens, max(SMALLEST, min(LARGEST, -(-share // 4) * 4)))


def sort_by_expert(expert_TX: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The rows, R = T x X, in the order of their experts, i32 `[R]`, and how many each has, i32 `[E]`.

    Those without an expert come last.
    """
    expert_R = expert_TX.reshape(-1)
    size_E = jnp.bincount(expert_R, length=count + 1)[:count].astype(jnp.int32)
    return jnp.argsort(expert_R, stable=True).astype(jnp.int32), size_E


def weighted_sum(
    y_RD: jax.Array, order_R: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, count: int
) -> jax.Array:
    """The rows, back in their places, summed over each token's experts by weight: f32 `[T, D]`.

    A row that no expert made may hold anything; it counts as zero.
    """
    y_TXD = y_RD[jnp.argsort(order_R)].reshape(*expert_TX.shape, -1).astype(jnp.float32)
    held_TX1 = (expert_TX < count)[:, :, None]
    return jnp.where(held_TX1, y_TXD * weight_TX[:, :, None], 0.0).sum(axis=1)


def _in_blocks(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights, block: int
) -> jax.Array:
    """A block may reach past its expert's rows: what it makes of them is overwritten by the block whose they
    are, since blocks come in the order of rows, and behind the last expert's nobody looks."""
    order_R, size_E = sort_by_expert(expert_TX, experts.count)
    start_E = jnp.cumsum(size_E) - size_E
    blocks_E = -(-size_E // block)
    last_E = jnp.cumsum(blocks_E)
    x_RD = jnp.pad(x_TD[order_R // expert_TX.shape[1]], ((0, block), (0, 0)))

    def one(i: jax.Array, y_RD: jax.Array) -> jax.Array:
        e = jnp.searchsorted(last_E, i, side="right").astype(jnp.int32)
        at = start_E[e] + (i - (last_E[e] - blocks_E[e])) * block
        x_CD = lax.dynamic_slice_in_dim(x_RD, at, block)
        return lax.dynamic_update_slice_in_dim(y_RD, _expert(x_CD, experts, e), at, axis=0)

    y_RD = lax.fori_loop(0, last_E[-1], one, jnp.zeros_like(x_RD))
    return weighted_sum(y_RD, order_R, expert_TX, weight_TX, experts.count).astype(x_TD.dtype)


def _expert(x_CD: jax.Array, experts: ExpertWeights, e: jax.Array) -> jax.Array:
    """Some rows through expert e, i32 `[]`: SwiGLU."""
    gate_CF = _product(x_CD, experts.gate, experts.gate_scale, e)
    up_CF = _product(x_CD, experts.up, experts.up_scale, e)
    return _product(jax.nn.silu(gate_CF) * up_CF, experts.down, experts.down_scale, e)


def _product(
    x_CD: jax.Array, weights: jax.Array | tuple[jax.Array, ...], scale_EF: jax.Array | None, e: jax.Array
) -> jax.Array:
    """Rows times expert e's weights. Of stacked weights these are copied first; where experts lie apart, a
    branch for each reads them where they are, and holds nothing else, so that it costs little to compile."""

    def times(w_DF: jax.Array) -> jax.Array:
        return halves(x_CD, w_DF) if scale_EF is None else int8_padded(x_CD, w_DF, scale_EF[e])

    if not isinstance(weights, tuple):
        return times(weights[e])
    return lax.switch(e, [partial(times, w.reshape(w.shape[1:])) for w in weights])
