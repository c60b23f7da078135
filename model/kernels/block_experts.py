"""Mixture of experts in portable XLA: rows sorted by expert, then a loop over the blocks in use.

Each block holds rows of one expert only, so the work follows the tokens and not the experts, although every
shape is static. Grouping by sorting and padding each group to whole blocks are from MegaBlocks (Gale et al.
2022, arXiv:2211.15841).

All blocks of a step have one size, which depends on the step's shape and not on the routing: a product of
another size may sum in another order, and a token must get the same bits in any batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ..parameters import FLOAT8
from .fp8 import fp8_product
from .grouped import GroupedProduct, rounded
from .linear import int8_padded, split_k
from .registry import ExpertWeights

SMALLEST, LARGEST = 8, 40
"""Rows per block on a CPU. Fewer than 8 take as long, because a product reads all its weights first; with
more than 40, too many rows are padding if the load of the experts differs."""
LARGEST_WIDENED = 512
"""The same with weights in groups or in fp8: each block widens its expert's, which costs more than some
padding."""


def block_experts(
    x_TD: jax.Array,
    expert_TX: jax.Array,
    weight_TX: jax.Array,
    experts: ExpertWeights,
    *,
    grouped: GroupedProduct = rounded,
) -> jax.Array:
    """See `registry.ExpertsKernel`; `grouped` computes products with weights in groups.

    A block may reach past its expert's rows. The block that these rows belong to overwrites the result,
    because blocks come in the order of rows; rows after the last expert's are not read.
    """
    largest = LARGEST_WIDENED if experts.grouped or experts.fp8 else LARGEST
    block = block_rows(expert_TX.shape[0], expert_TX.shape[1], experts.count, largest)
    order_R, size_E = sort_by_expert(expert_TX, experts.count)
    start_E = jnp.cumsum(size_E) - size_E
    blocks_E = -(-size_E // block)
    last_E = jnp.cumsum(blocks_E)
    x_RD = jnp.pad(x_TD[order_R // expert_TX.shape[1]], ((0, block), (0, 0)))

    def one(i: jax.Array, y_RD: jax.Array) -> jax.Array:
        e = jnp.searchsorted(last_E, i, side="right").astype(jnp.int32)
        at = start_E[e] + (i - (last_E[e] - blocks_E[e])) * block
        x_CD = lax.dynamic_slice_in_dim(x_RD, at, block)
        return lax.dynamic_update_slice_in_dim(y_RD, _expert(x_CD, experts, e, grouped), at, axis=0)

    y_RD = lax.fori_loop(0, last_E[-1], one, jnp.zeros_like(x_RD))
    return weighted_sum(y_RD, order_R, expert_TX, weight_TX, experts.count).astype(x_TD.dtype)


def block_rows(tokens: int, choices: int, count: int, largest: int = LARGEST) -> int:
    """Rows per block: an eighth more than each expert gets if all get the same number, so that most experts
    need one block.

    Never more than the number of tokens, because each token goes to an expert once at most.
    """
    share = tokens * choices * 9 // (8 * count)
    return min(tokens, max(SMALLEST, min(largest, -(-share // 4) * 4)))


def sort_by_expert(expert_TX: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The rows, R = T x X, in the order of their experts, i32 `[R]`, and the number of each expert's rows,
    i32 `[E]`.

    Rows without an expert come last.
    """
    expert_R = expert_TX.reshape(-1)
    size_E = jnp.bincount(expert_R, length=count + 1)[:count].astype(jnp.int32)
    return jnp.argsort(expert_R, stable=True).astype(jnp.int32), size_E


def weighted_sum(
    y_RD: jax.Array, order_R: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, count: int
) -> jax.Array:
    """The rows in their original order, summed over each token's experts by weight: f32 `[T, D]`.

    A row without an expert may hold any value; it counts as zero.
    """
    y_TXD = y_RD[jnp.argsort(order_R)].reshape(*expert_TX.shape, -1)
    return sum_of_choices(y_TXD, expert_TX, weight_TX, count)


def sum_of_choices(y_TXD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, count: int) -> jax.Array:
    """As `weighted_sum`, of rows in their original order."""
    held_TX1 = (expert_TX < count)[:, :, None]
    y_TXD = y_TXD.astype(jnp.float32)
    return jnp.where(held_TX1, y_TXD * weight_TX[:, :, None], 0.0).sum(axis=1)


def _expert(
    x_CD: jax.Array, experts: ExpertWeights, e: jax.Array, grouped: GroupedProduct = rounded
) -> jax.Array:
    """Some rows through expert e, i32 `[]`: SwiGLU."""
    kind = partial(_grouped_product, grouped) if experts.grouped else _product
    product = partial(kind, e=e, experts=experts)
    gate_CF, up_CF = product(x_CD, name="gate"), product(x_CD, name="up")
    return product(jax.nn.silu(gate_CF) * up_CF, name="down")


def _grouped_product(
    grouped: GroupedProduct, x_CD: jax.Array, name: str, e: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """Rows times expert e's weights in groups, which are widened tile by tile."""
    weight = tuple(getattr(experts, f"{name}{part}") for part in ("", "_scale", "_low"))
    return grouped(x_CD, weight, e).astype(x_CD.dtype)


def _product(x_CD: jax.Array, name: str, e: jax.Array, experts: ExpertWeights) -> jax.Array:
    """Rows times expert e's weights. Stacked weights are copied first, those of fp8 tile by tile. With
    unstacked experts, a branch for each expert reads its weights in place and holds nothing else, so that it
    is cheap to compile."""
    weights, scale = getattr(experts, name), getattr(experts, f"{name}_scale")
    if isinstance(weights, tuple):
        own = None if scale is None else scale[e]
        branches = [partial(_times, x_CD, w.reshape(w.shape[1:]), own) for w in weights]
        return lax.switch(e, branches)
    if experts.fp8:
        return fp8_product(x_CD, (weights, scale), e).astype(x_CD.dtype)
    return _times(x_CD, weights[e], None if scale is None else scale[e])


def _times(x_CD: jax.Array, w_DF: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Rows times a weight."""
    if scale is None:
        (y_CF,) = split_k(x_CD, w_DF)
    elif w_DF.dtype == FLOAT8:
        y_CF = fp8_product(x_CD, (w_DF, scale))
    else:
        (y_CF,) = int8_padded(x_CD, (w_DF, scale))
    return y_CF.astype(x_CD.dtype)
