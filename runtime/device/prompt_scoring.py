"""The part of a step that scores prompts: log-probabilities and hidden states of their tokens.

The whole part is skipped on the device if no token of the step has a target.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...model.lora import Lora
from ...model.transformer import Transformer
from ..request import MAX_TOP_LOGPROBS
from .sampling import logprobs

_SCORED_AT_ONCE = 64
"""The maximum number of prompt tokens with logits in memory at the same time."""


class Scores(NamedTuple):
    """The results of a mixed step for those of its T tokens that have a target.

    Attributes:
      logprob_TX, top_TX: as in `Samples`, for the token that follows each.
      hidden_BD: f32 `[B, D]`, the sum of each row's final hidden states.
    """

    logprob_TX: jax.Array
    top_TX: jax.Array
    hidden_BD: jax.Array


def score_prompts(
    model: Transformer, fields: Mapping[str, jax.Array], hidden_TD: jax.Array, lora: Lora | None
) -> Scores:
    """The scores of the tokens that have a target; computes nothing if there are none."""
    tokens, width = hidden_TD.shape
    nothing = Scores(
        jnp.zeros((tokens, 1 + MAX_TOP_LOGPROBS), jnp.float32),
        jnp.zeros((tokens, MAX_TOP_LOGPROBS), jnp.int32),
        jnp.zeros((len(fields["slot"]), width), jnp.float32),
    )
    wanted_T = fields["target"] >= 0

    def score() -> Scores:
        logprob_TX, top_TX = _score_next(model, fields["target"], hidden_TD, nothing, lora)
        counted_TD = jnp.where(wanted_T[:, None], hidden_TD.astype(jnp.float32), 0.0)
        return Scores(logprob_TX, top_TX, nothing.hidden_BD.at[fields["row"]].add(counted_TD))

    return lax.cond(jnp.any(wanted_T), score, lambda: nothing)


def _score_next(
    model: Transformer, target_T: jax.Array, hidden_TD: jax.Array, nothing: Scores, lora: Lora | None
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the targets; only tokens with a target go through the head, in groups."""
    tokens = len(target_T)
    size = min(_SCORED_AT_ONCE, tokens)
    wanted_T, every_T = target_T >= 0, jnp.arange(tokens, dtype=jnp.int32)
    room = -(-tokens // size) * size
    place_T = jnp.where(wanted_T, jnp.cumsum(wanted_T, dtype=jnp.int32) - 1, room)
    token_W = jnp.full(room, tokens, jnp.int32).at[place_T].set(every_T, mode="drop")

    def some(part: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token_R = lax.dynamic_slice_in_dim(token_W, part * size, size)
        hidden_RD = hidden_TD.at[token_R].get(mode="fill", fill_value=0)
        target_R = target_T.at[token_R].get(mode="fill", fill_value=0)
        own = None if lora is None else lora.of_rows(token_R)
        logits_RV = model.logits(hidden_RD, lora=own)
        logprob_RX, top_RX = logprobs(logits_RV, target_R, model.target.kernels.row_sum)
        logprob_TX, top_TX = found
        return (
            logprob_TX.at[token_R].set(logprob_RX, mode="drop"),
            top_TX.at[token_R].set(top_RX, mode="drop"),
        )

    parts = -(-jnp.sum(wanted_T, dtype=jnp.int32) // size)
    return lax.fori_loop(0, parts, some, (nothing.logprob_TX, nothing.top_TX))
