"""Mixture of experts by `lax.ragged_dot`: one product over rows sorted by expert, with each group's own
weights.

On TPUs XLA has a kernel for it that visits only tiles with rows in them, in f32, bf16 and int8. On CPUs and
GPUs it computes every expert for every row, so it is not chosen there.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ...quantize import quantize_last
from ..block_experts import block_experts, sort_by_expert, weighted_sum
from ..grouped import unrounded
from ..registry import ExpertWeights


def ragged_experts(
    x_TD: jax.Array, expert_TX: jax.Array, weight_TX: jax.Array, experts: ExpertWeights
) -> jax.Array:
    """See `registry.ExpertsKernel`; the portable backend computes experts of fp8, and those in groups, of
    rows that are not rounded."""
    if experts.grouped or experts.fp8:
        return block_experts(x_TD, expert_TX, weight_TX, experts, grouped=unrounded)
    count = experts.count
    order_R, size_E = sort_by_expert(expert_TX, count)
    x_RD = x_TD[order_R // expert_TX.shape[1]]
    expert_R = jnp.minimum(expert_TX.reshape(-1)[order_R], count - 1)
    gate_RF = _product(x_RD, experts.gate, experts.gate_scale, expert_R, size_E)
    up_RF = _product(x_RD, experts.up, experts.up_scale, expert_R, size_E)
    y_RD = _product(jax.nn.silu(gate_RF) * up_RF, experts.down, experts.down_scale, expert_R, size_E)
    return weighted_sum(y_RD, order_R, expert_TX, weight_TX, count).astype(x_TD.dtype)


def _product(
    x_RD: jax.Array,
    w_EDF: jax.Array | tuple[jax.Array, ...],
    scale_EF: jax.Array | None,
    expert_R: jax.Array,
    size_E: jax.Array,
) -> jax.Array:
    """Each row times its expert's weights: `[R, F]` in x's dtype; rows without an expert may hold any
    value."""
    w_EDF = jnp.concatenate(w_EDF) if isinstance(w_EDF, tuple) else w_EDF
    if scale_EF is None:
        y_RF = lax.ragged_dot(x_RD, w_EDF, size_E, preferred_element_type=jnp.float32)
        return y_RF.astype(x_RD.dtype)
    rounded_RD, scale_R = quantize_last(x_RD)
    y_RF = lax.ragged_dot(rounded_RD, w_EDF, size_E, preferred_element_type=jnp.int32).astype(jnp.float32)
    return (y_RF * scale_R[:, None] * scale_EF[expert_R]).astype(x_RD.dtype)
