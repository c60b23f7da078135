"""Sparse mixture of experts (Mixtral: Jiang et al. 2024, arXiv:2401.04088).

The router sends each token to X of E experts; their outputs are summed with the router's weights. Routing is
here; the experts' arithmetic is in a kernel.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from .config import ModelConfig, MoEConfig
from .kernels.registry import ExpertWeights
from .layers import Linears
from .sharding import first_of_share, psum
from .target import Target


class MixtureOfExperts(Linears):
    """A router and experts that replace a dense feed-forward."""

    def __init__(self, config: ModelConfig, moe: MoEConfig, target: Target, *, dtype: jnp.dtype) -> None:
        super().__init__(target)
        width, inner = config.width, config.feed_forward
        self.router = nnx.Param(jax.ShapeDtypeStruct((width, moe.experts), dtype))
        self.add("gate", (moe.experts, width, inner), dtype=dtype)
        self.add("up", (moe.experts, width, inner), dtype=dtype)
        self.add("down", (moe.experts, inner, width), dtype=dtype)
        self.moe = moe

    def __call__(self, x_TD: jax.Array, live_T: jax.Array) -> jax.Array:
        """Maps `[T, D]` to `[T, D]`; tokens that are not live are routed to no expert and get zero."""
        expert_TX, weight_TX = self._route(x_TD)
        experts = self._experts()
        held, shards = experts.count, self.target.shards
        first = first_of_share(held, shards) if held < self.moe.experts else 0
        here_TX = live_T[:, None] & (expert_TX >= first) & (expert_TX < first + held)
        expert_TX = jnp.where(here_TX, expert_TX - first, held)
        return psum(self.target.kernels.experts(x_TD, expert_TX, weight_TX, experts), shards)

    def _route(self, x_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each token's best experts, i32 `[T, X]`, and their weights, f32 `[T, X]`: a softmax over these
        experts only, or over all of them.

        The first equals a softmax over all experts that is renormalised over the chosen ones.
        """
        kernels = self.target.kernels
        with jax.named_scope("router"):
            (score_TE,) = kernels.linear(x_TD, self.router[...])
            score_TE = score_TE[:, : self.moe.experts]
            best_TX, expert_TX = lax.top_k(score_TE, self.moe.experts_per_token)
            power_TX = jnp.exp(best_TX - best_TX[:, :1])
            counted = power_TX if self.moe.normalized else jnp.exp(score_TE - best_TX[:, :1])
            return expert_TX, power_TX / kernels.row_sum(counted)[:, None]

    def _experts(self) -> ExpertWeights:
        names = [f"{name}{part}" for part in ("", "_scale", "_low") for name in ("gate", "up", "down")]
        return ExpertWeights(
            **{name: getattr(self, name).get_value() for name in names if hasattr(self, name)}
        )
