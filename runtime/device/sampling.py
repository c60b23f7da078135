"""From logits to tokens, on the device, for a batch in which every row has its own settings.

Nothing here is static: one compiled sampler serves every mixture of requests, and `lax.cond` skips work that
no row needs. `sample_plain` is the part of it without conditions, for rows that are greedy or just draw.
A draw is keyed by (seed, choice, position) alone, so it does not depend on neighbours, slots, chunking or
preemption.

How a row draws is a kernel (`model/kernels/draw.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...model.kernels import draw as portable
from ...model.kernels import rows
from ...model.kernels.draw import DrawSettings
from ...model.kernels.registry import DrawKernel, RowSumKernel
from ..request import IMPOSSIBLE, MAX_TOP_LOGPROBS, NOT_FINITE


class RowParams(NamedTuple):
    """Sampling settings, one entry a row.

    Attributes:
      seed_B2: u32 `[B, 2]`, low and high word of the seed. choice_B: i32. position_B: i32, of the token
        drawn.
      temperature_B: f32, 0 for the most likely token. top_p_B, min_p_B: f32. top_k_B: i32, 0 for no limit.
      frequency_penalty_B, presence_penalty_B, repetition_penalty_B: f32 penalties.
      adjusts_B: bool, whether `Adjustments` apply to the row.
      end_position_B: i32, before which the row must not end.
      wants_logprobs_B: bool.
    """

    seed_B2: jax.Array
    choice_B: jax.Array
    position_B: jax.Array
    temperature_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    top_k_B: jax.Array
    frequency_penalty_B: jax.Array
    presence_penalty_B: jax.Array
    repetition_penalty_B: jax.Array
    adjusts_B: jax.Array
    end_position_B: jax.Array
    wants_logprobs_B: jax.Array


PROMPTED, ENDING = 1, 2
"""Marks of an id: it is in the prompt; it ends the sequence."""


class Adjustments(NamedTuple):
    """The values of each id in each row, for rows that adjust logits.

    Attributes:
      counts_BV: i32, how often the row has generated it. bias_BV: f32, added to its logit.
      marks_BV: u8, PROMPTED and ENDING.
    """

    counts_BV: jax.Array
    bias_BV: jax.Array
    marks_BV: jax.Array


class Samples(NamedTuple):
    """The results of a step for the host.

    Attributes:
      token_B: i32, the sampled id; NOT_FINITE if the row is broken or its logits are not finite,
        IMPOSSIBLE if no id is allowed.
      logprob_BX: f32 `[B, 1 + MAX_TOP_LOGPROBS]`, of the sampled token and of `top_BX`, from the raw logits;
        zeros if no row needs them.
      top_BX: i32 `[B, MAX_TOP_LOGPROBS]`, the most likely ids, descending.
    """

    token_B: jax.Array
    logprob_BX: jax.Array
    top_BX: jax.Array


def sample(
    logits_BV: jax.Array,
    params: RowParams,
    adjustments: Callable[[], Adjustments],
    broken_B: jax.Array,
    allowed_BV: jax.Array | None = None,
    row_sum: RowSumKernel = rows.row_sum,
    draw: DrawKernel = portable.draw,
) -> Samples:
    """Draws one token per row.

    Args:
      logits_BV: f32, the model's raw scores.
      adjustments: called only if a row adjusts logits.
      broken_B: bool, rows that must not continue.
      allowed_BV: bool, the allowed ids; None for all.
      row_sum, draw: the kernels for sums over the vocabulary, and for draws.
    """
    with jax.named_scope("sample"):
        adjusted_BV = lax.cond(
            jnp.any(params.adjusts_B),
            lambda: _adjust(logits_BV, adjustments(), params, allowed_BV),
            lambda: _masked(logits_BV, allowed_BV),
        )
        greedy_B = jnp.argmax(adjusted_BV, axis=-1).astype(jnp.int32)
        draws_B = _draws(params)
        drawn_B = lax.cond(
            jnp.any(draws_B),
            lambda: draw(adjusted_BV, _draw_settings(params, draws_B)),
            lambda: greedy_B,
        )
        best_B = jnp.take_along_axis(adjusted_BV, greedy_B[:, None], axis=1)[:, 0]
        token_B = jnp.where(best_B > -jnp.inf, jnp.where(draws_B, drawn_B, greedy_B), IMPOSSIBLE)
        token_B = jnp.where(_is_finite(logits_BV, broken_B), token_B, NOT_FINITE)
        wanted = jnp.any(params.wants_logprobs_B)
        logprob_BX, top_BX = lax.cond(
            wanted, lambda: logprobs(logits_BV, token_B, row_sum), lambda: _no_logprobs(logits_BV.shape[0])
        )
        return Samples(token_B, logprob_BX, top_BX)


def sample_plain(logits_BV: jax.Array, params: RowParams, broken_B: jax.Array, draw: DrawKernel) -> Samples:
    """As `sample`, for rows without adjusted logits and without log-probabilities."""
    with jax.named_scope("sample"):
        draws_B = _draws(params)
        drawn_B = draw(logits_BV, _draw_settings(params, draws_B))
        token_B = jnp.where(draws_B, drawn_B, jnp.argmax(logits_BV, axis=-1).astype(jnp.int32))
        token_B = jnp.where(_is_finite(logits_BV, broken_B), token_B, NOT_FINITE)
        return Samples(token_B, *_no_logprobs(len(token_B)))


def _draws(params: RowParams) -> jax.Array:
    """Whether each row draws: bool `[B]`; the others are greedy."""
    return (params.temperature_B > 0) & (params.top_p_B > 0) & (params.top_k_B != 1)


def _is_finite(logits_BV: jax.Array, broken_B: jax.Array) -> jax.Array:
    return jnp.isfinite(jnp.max(logits_BV, axis=-1)) & ~broken_B


def _masked(logits_BV: jax.Array, allowed_BV: jax.Array | None) -> jax.Array:
    return logits_BV if allowed_BV is None else jnp.where(allowed_BV, logits_BV, -jnp.inf)


def _adjust(
    logits_BV: jax.Array, known: Adjustments, params: RowParams, allowed_BV: jax.Array | None
) -> jax.Array:
    """The logits of the rows that adjust them: repetition divides, OpenAI's penalties are subtracted
    (`count * frequency + (count > 0) * presence`), the bias is added, the mask applied, and an early end is
    excluded unless only an end is left: a text with a complete grammar ends."""
    count_BV = known.counts_BV.astype(jnp.float32)
    seen_BV = (known.counts_BV > 0).astype(jnp.float32)
    repeated_BV = (known.counts_BV > 0) | (known.marks_BV & PROMPTED > 0)
    factor_B1 = params.repetition_penalty_B[:, None]
    divided_BV = jnp.where(logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1)
    adjusted_BV = jnp.where(repeated_BV, divided_BV, logits_BV)
    adjusted_BV -= (
        count_BV * params.frequency_penalty_B[:, None] + seen_BV * params.presence_penalty_B[:, None]
    )
    adjusted_BV = _masked(adjusted_BV + known.bias_BV, allowed_BV)
    early_B1 = (params.position_B < params.end_position_B)[:, None]
    ends_BV = early_B1 & (known.marks_BV & ENDING > 0)
    left_BV = known.bias_BV > -jnp.inf if allowed_BV is None else (known.bias_BV > -jnp.inf) & allowed_BV
    goes_on_B1 = jnp.any(left_BV & ~ends_BV, axis=-1, keepdims=True)
    adjusted_BV = jnp.where(ends_BV & goes_on_B1, -jnp.inf, adjusted_BV)
    return jnp.where(params.adjusts_B[:, None], adjusted_BV, _masked(logits_BV, allowed_BV))


def _draw_settings(params: RowParams, draws_B: jax.Array) -> DrawSettings:
    return DrawSettings(
        temperature_B=jnp.where(draws_B, params.temperature_B, 0.0),
        top_k_B=params.top_k_B,
        top_p_B=params.top_p_B,
        min_p_B=params.min_p_B,
        key_B2=_keys(params),
    )


def _keys(params: RowParams) -> jax.Array:
    """Two words for each row's seed, choice and position, by threefry: u32 `[B, 2]`."""

    def key(seed: jax.Array, choice: jax.Array, position: jax.Array) -> jax.Array:
        root = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(root, choice), position))

    return jax.vmap(key)(params.seed_B2, params.choice_B, params.position_B)


def allowed_of(mask_BW: jax.Array, size: int) -> jax.Array:
    """The bits of a mask, u32 `[B, W]`, lowest first: bool `[B, size]`."""
    bit_V = jnp.arange(size, dtype=jnp.uint32)
    return (mask_BW[:, bit_V // 32] >> (bit_V % 32)[None, :]) & 1 > 0


def logprobs(logits_BV: jax.Array, token_B: jax.Array, row_sum: RowSumKernel) -> tuple[jax.Array, jax.Array]:
    """Log-softmax of the raw logits, for one token per row and the most likely ones, as in `Samples`."""
    peak_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    norm_B1 = peak_B1 + jnp.log(row_sum(jnp.exp(logits_BV - peak_B1)))[:, None]
    width = min(MAX_TOP_LOGPROBS, logits_BV.shape[1])
    best_BX, top_BX = lax.top_k(logits_BV, width)
    chosen_B1 = jnp.take_along_axis(logits_BV, jnp.maximum(token_B, 0)[:, None], axis=1)
    short = ((0, 0), (0, MAX_TOP_LOGPROBS - width))
    logprob_BX = jnp.concatenate([chosen_B1, jnp.pad(best_BX, short)], axis=1) - norm_B1
    # Without the barrier XLA can fuse later operations with its TopK, and then sort the vocabulary on a CPU.
    # A barrier directly around the two results of TopK crashes XLA's compiler.
    return lax.optimization_barrier((logprob_BX, jnp.pad(top_BX, short)))


def _no_logprobs(rows: int) -> tuple[jax.Array, jax.Array]:
    return (
        jnp.zeros((rows, 1 + MAX_TOP_LOGPROBS), jnp.float32),
        jnp.zeros((rows, MAX_TOP_LOGPROBS), jnp.int32),
    )
