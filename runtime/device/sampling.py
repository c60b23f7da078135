"""From logits to tokens, on the device, for a batch in which every row has its own settings.

Nothing here is static: one compiled sampler serves every mixture of requests, and `lax.cond` skips work that
no row needs. A draw is keyed by (seed, choice, position) alone, so it does not depend on
neighbours, slots, chunking or preemption.

The idea: top-k, top-p and min-p are all thresholds on the logit. With the row's threshold known, all kept
tokens race: each has an exponentially distributed time, divided by its weight, and the first one wins. This
is exact over the whole vocabulary, needs a few passes over the logits, and no sort. It is also stable: logits
that differ in their last bits, as in differently padded batches, change the winner only if two tokens arrive
at the same time. A search in the cumulative probabilities would change it at every boundary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...model.kernels import rows
from ...model.kernels.registry import RowSumKernel
from ..request import IMPOSSIBLE, MAX_TOP_LOGPROBS, NOT_FINITE

WINDOW = 128
"""Thresholds are first searched among this many best tokens; bisection over all ids finds the others."""

_BISECTIONS = 40


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
) -> Samples:
    """Draws one token per row.

    Args:
      logits_BV: f32, the model's raw scores.
      adjustments: called only if a row adjusts logits.
      broken_B: bool, rows that must not continue.
      allowed_BV: bool, the allowed ids; None for all.
      row_sum: the kernel for sums over the vocabulary.
    """
    with jax.named_scope("sample"):
        adjusted_BV = lax.cond(
            jnp.any(params.adjusts_B),
            lambda: _adjust(logits_BV, adjustments(), params, allowed_BV),
            lambda: _masked(logits_BV, allowed_BV),
        )
        greedy_B = jnp.argmax(adjusted_BV, axis=-1).astype(jnp.int32)
        draws_B = (params.temperature_B > 0) & (params.top_p_B > 0) & (params.top_k_B != 1)
        drawn_B = lax.cond(
            jnp.any(draws_B), lambda: _draw(adjusted_BV, params, draws_B, row_sum), lambda: greedy_B
        )
        best_B = jnp.take_along_axis(adjusted_BV, greedy_B[:, None], axis=1)[:, 0]
        possible_B = best_B > -jnp.inf
        finite_B = jnp.isfinite(jnp.max(logits_BV, axis=-1)) & ~broken_B
        token_B = jnp.where(possible_B, jnp.where(draws_B, drawn_B, greedy_B), IMPOSSIBLE)
        token_B = jnp.where(finite_B, token_B, NOT_FINITE)
        wanted = jnp.any(params.wants_logprobs_B)
        logprob_BX, top_BX = lax.cond(
            wanted, lambda: logprobs(logits_BV, token_B, row_sum), lambda: _no_logprobs(logits_BV.shape[0])
        )
        return Samples(token_B, logprob_BX, top_BX)


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


def _draw(logits_BV: jax.Array, params: RowParams, draws_B: jax.Array, row_sum: RowSumKernel) -> jax.Array:
    """Draws from each row's truncated, tempered distribution; i32 `[B]`."""
    temperature_B = jnp.where(draws_B, params.temperature_B, 1.0)
    scaled_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature_B[:, None]
    weights_BV = jnp.exp(scaled_BV)
    floor_B = _thresholds(weights_BV, params, draws_B, row_sum)
    kept_BV = jnp.where(weights_BV >= floor_B[:, None], weights_BV, 0.0)
    return jnp.argmax(kept_BV / _times(kept_BV.shape[1], params), axis=-1).astype(jnp.int32)


def _times(size: int, params: RowParams) -> jax.Array:
    """Exponentially distributed times, f32 `[B, size]`, keyed by each row's seed, choice and position.

    Threefry turns a row's key into two words; an integer hash (Wellons' `lowbias32`) spreads them over the
    ids, because threefry for every id would cost as much as a decode step.
    """

    def key(seed: jax.Array, choice: jax.Array, position: jax.Array) -> jax.Array:
        root = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(root, choice), position))

    key_B2 = jax.vmap(key)(params.seed_B2, params.choice_B, params.position_B)
    id_BV = jnp.arange(size, dtype=jnp.uint32)[None, :] * jnp.uint32(0x9E3779B1) + key_B2[:, :1]
    bits_BV = (id_BV ^ (id_BV >> 16)) * jnp.uint32(0x7FEB352D)
    bits_BV = (bits_BV ^ (bits_BV >> 15) ^ key_B2[:, 1:]) * jnp.uint32(0x846CA68B)
    bits_BV = bits_BV ^ (bits_BV >> 16)
    uniform_BV = (bits_BV.astype(jnp.float32) + 0.5) * 2.0**-32
    return jnp.minimum(-jnp.log1p(-uniform_BV), 100.0)


def _thresholds(
    weights_BV: jax.Array, params: RowParams, draws_B: jax.Array, row_sum: RowSumKernel
) -> jax.Array:
    """The smallest weight that each row keeps (its largest weight is 1): f32 `[B]`.

    Top-k is applied first, top-p to the rest, min-p relative to the most likely token.
    """
    truncates_B = draws_B & ((params.top_k_B > 0) | (params.top_p_B < 1))
    floor_B = lax.cond(
        jnp.any(truncates_B),
        lambda: _rank_thresholds(weights_BV, params, truncates_B, row_sum),
        lambda: jnp.zeros_like(params.min_p_B),
    )
    return jnp.maximum(floor_B, params.min_p_B)


def _rank_thresholds(
    weights_BV: jax.Array, params: RowParams, truncates_B: jax.Array, row_sum: RowSumKernel
) -> jax.Array:
    size = weights_BV.shape[1]
    window = min(WINDOW, size)
    k_B = jnp.where(params.top_k_B > 0, jnp.minimum(params.top_k_B, size), size)
    best_BW = lax.top_k(weights_BV, window)[0]
    within_BW = jnp.arange(window, dtype=jnp.int32)[None, :] < k_B[:, None]
    best_BW = jnp.where(within_BW, best_BW, 0.0)
    inside_B = row_sum(best_BW)
    total_B = jnp.where(k_B <= window, inside_B, row_sum(weights_BV))
    before_BW = jnp.cumsum(best_BW, axis=-1) - best_BW
    kept_BW = within_BW & (before_BW < (params.top_p_B * total_B)[:, None])
    floor_B = jnp.min(jnp.where(kept_BW, best_BW, jnp.inf), axis=-1)
    # A row is settled if its threshold is inside the window. With a top-k beyond the window the total mass
    # for top-p is unknown here, so such a row always needs bisection.
    unlimited_B = k_B == size
    reached_B = inside_B >= params.top_p_B * total_B
    settled_B = (k_B <= window) | (unlimited_B & reached_B)
    open_B = truncates_B & ~settled_B
    searched_B = lax.cond(
        jnp.any(open_B), lambda: _search(weights_BV, k_B, params.top_p_B, row_sum), lambda: floor_B
    )
    return jnp.where(truncates_B, jnp.where(open_B, searched_B, floor_B), 0.0)


def _search(weights_BV: jax.Array, k_B: jax.Array, top_p_B: jax.Array, row_sum: RowSumKernel) -> jax.Array:
    """Thresholds by bisection over the whole vocabulary, for rows with a threshold outside the window."""

    def bisect(enough) -> jax.Array:
        def halve(_, bounds):
            low_B, high_B = bounds
            middle_B = (low_B + high_B) / 2
            holds_B = enough(middle_B)
            return jnp.where(holds_B, middle_B, low_B), jnp.where(holds_B, high_B, middle_B)

        start = (jnp.zeros_like(top_p_B), jnp.full_like(top_p_B, 2.0))
        return lax.fori_loop(0, _BISECTIONS, halve, start)[0]

    def kept(floor_B: jax.Array) -> jax.Array:
        return jnp.where(weights_BV >= floor_B[:, None], weights_BV, 0.0)

    by_rank_B = bisect(lambda floor_B: jnp.sum(weights_BV >= floor_B[:, None], -1) >= k_B)
    wanted_B = top_p_B * row_sum(kept(by_rank_B))
    by_mass_B = bisect(lambda floor_B: row_sum(kept(floor_B)) >= wanted_B)
    return jnp.maximum(by_rank_B, by_mass_B)


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
