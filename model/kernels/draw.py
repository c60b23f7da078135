"""Draws one id per row from tempered and truncated logits, in portable XLA.

The idea: top-k, top-p and min-p are all thresholds on an id's weight. With the row's threshold known, all
kept ids race: each has an exponentially distributed time, divided by its weight, and the first one wins. This
is exact over the whole vocabulary, needs a few passes over the logits, and no sort. It is also stable: logits
that differ in their last bits, as in differently padded batches, change the winner only if two ids arrive at
the same time. A search in the cumulative probabilities would change it at every boundary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = 128
"""Thresholds are first searched among this many best ids; bisection over all ids finds the others."""

_BISECTIONS = 40


class DrawSettings(NamedTuple):
    """How each row draws.

    Attributes:
      temperature_B: f32; 0 for a row that does not draw: its id is any one.
      top_k_B: i32, 0 for no limit. top_p_B, min_p_B: f32.
      key_B2: u32 `[B, 2]`, the row's random words.
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    key_B2: jax.Array


def draw(logits_BV: jax.Array, settings: DrawSettings) -> jax.Array:
    """See `registry.DrawKernel`."""
    temperature_B = jnp.where(settings.temperature_B > 0, settings.temperature_B, 1.0)
    scaled_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature_B[:, None]
    weights_BV = jnp.exp(scaled_BV)
    floor_B = floors(weights_BV, settings)
    kept_BV = jnp.where(weights_BV >= floor_B[:, None], weights_BV, 0.0)
    id_1V = jnp.arange(kept_BV.shape[1], dtype=jnp.uint32)[None, :]
    times_BV = arrival_times(id_1V, settings.key_B2[:, :1], settings.key_B2[:, 1:])
    return jnp.argmax(kept_BV / times_BV, axis=-1).astype(jnp.int32)


def arrival_times(id: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Exponentially distributed times of ids, u32, for the two words of a row's key; f32, broadcast.

    An integer hash (Wellons' `lowbias32`) spreads a row's key over the ids, because threefry for every id
    would cost as much as a decode step.
    """
    mixed = id * jnp.uint32(0x9E3779B1) + first
    bits = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15) ^ second) * jnp.uint32(0x846CA68B)
    bits = bits ^ (bits >> 16)
    uniform = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    return jnp.minimum(-jnp.log1p(-uniform), 100.0)


def floors(weights_BV: jax.Array, settings: DrawSettings) -> jax.Array:
    """The smallest weight that each row keeps (its largest weight is 1): f32 `[B]`.

    Top-k is applied first, top-p to the rest, min-p relative to the most likely id.
    """
    truncates_B = (settings.temperature_B > 0) & ((settings.top_k_B > 0) | (settings.top_p_B < 1))
    floor_B = lax.cond(
        jnp.any(truncates_B),
        lambda: _rank_floors(weights_BV, settings, truncates_B),
        lambda: jnp.zeros_like(settings.min_p_B),
    )
    return jnp.maximum(floor_B, settings.min_p_B)


def _rank_floors(weights_BV: jax.Array, settings: DrawSettings, truncates_B: jax.Array) -> jax.Array:
    size = weights_BV.shape[1]
    window = min(WINDOW, size)
    k_B = jnp.where(settings.top_k_B > 0, jnp.minimum(settings.top_k_B, size), size)
    best_BW = lax.top_k(weights_BV, window)[0]
    within_BW = jnp.arange(window, dtype=jnp.int32)[None, :] < k_B[:, None]
    best_BW = jnp.where(within_BW, best_BW, 0.0)
    inside_B = best_BW.sum(axis=-1)
    total_B = jnp.where(k_B <= window, inside_B, weights_BV.sum(axis=-1))
    before_BW = jnp.cumsum(best_BW, axis=-1) - best_BW
    kept_BW = within_BW & (before_BW < (settings.top_p_B * total_B)[:, None])
    floor_B = jnp.min(jnp.where(kept_BW, best_BW, jnp.inf), axis=-1)
    # A row is settled if its threshold is inside the window. With a top-k beyond the window the total mass
    # for top-p is unknown here, so such a row always needs bisection.
    unlimited_B = k_B == size
    reached_B = inside_B >= settings.top_p_B * total_B
    settled_B = (k_B <= window) | (unlimited_B & reached_B)
    open_B = truncates_B & ~settled_B
    searched_B = lax.cond(
        jnp.any(open_B), lambda: _search(weights_BV, k_B, settings.top_p_B), lambda: floor_B
    )
    return jnp.where(truncates_B, jnp.where(open_B, searched_B, floor_B), 0.0)


def _search(weights_BV: jax.Array, k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
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

    by_rank_B = lax.cond(
        jnp.any(k_B < weights_BV.shape[1]),
        lambda: bisect(lambda floor_B: jnp.sum(weights_BV >= floor_B[:, None], -1) >= k_B),
        lambda: jnp.zeros_like(top_p_B),
    )
    wanted_B = top_p_B * kept(by_rank_B).sum(axis=-1)
    by_mass_B = bisect(lambda floor_B: kept(floor_B).sum(axis=-1) >= wanted_B)
    return jnp.maximum(by_rank_B, by_mass_B)
