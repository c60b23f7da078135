"""The device's side of a step: one pure function per bucket, its state donated.

A step takes the parameters, the state and one packed buffer, and returns the new state and the samples:
embed, all layers, the head on the rows that sample, the sampler. Nothing else crosses to the host. What
goes into the buffer is decided in `engine.py`, how it is laid out in `buckets.py`. On a mesh every device
runs the step on its share of the parameters and of the cache; everything else is the same on all.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..model.cache import Batch, Cache, Tiles, create_cache
from ..model.sharding import CACHE, REPLICATED, pad_config
from ..model.transformer import Skeleton
from .buckets import Bucket, Layout, Shapes
from .sampling import RowParams, Samples, sample


class DeviceState(NamedTuple):
    """What lives on the device between steps; every step consumes it and returns its successor.

    Attributes:
      cache: the KV pools.
      last_S: i32 `[slots]`, each slot's newest sample: the next step's input before the host has seen it.
      counts_SV: i32 `[slots, V]`, how often each slot's sequence has generated each id, kept for sequences
        with penalties only.
      broken_S: bool `[slots]`, whether a number that is not finite has come up in each slot's sequence.
      broken_P: bool `[pages]`, the same of each page, for those who find it later.
    """

    cache: Cache
    last_S: jax.Array
    counts_SV: jax.Array
    broken_S: jax.Array
    broken_P: jax.Array


Step = Callable[[tuple[jax.Array, ...], DeviceState, jax.Array], tuple[DeviceState, Samples]]


STATE = DeviceState._make([CACHE, *[REPLICATED] * (len(DeviceState._fields) - 1)])
"""How the state is divided among devices: the cache by heads, all else whole on each."""


def create_state(skeleton: Skeleton, shapes: Shapes, pages: int, dtype: jnp.dtype) -> DeviceState:
    """A fresh state with `pages` pages, the trash page among them, of keys and values of a type: all devices'
    shares together."""
    config = skeleton.config
    return DeviceState(
        cache=create_cache(pad_config(config, skeleton.target.shards), pages, shapes.page_size, dtype),
        last_S=jnp.zeros(shapes.slots, jnp.int32),
        counts_SV=jnp.zeros((shapes.slots, config.vocabulary), jnp.int32),
        broken_S=jnp.zeros(shapes.slots, jnp.bool),
        broken_P=jnp.zeros(pages, jnp.bool),
    )


def make_step(skeleton: Skeleton, bucket: Bucket, shapes: Shapes) -> Step:
    """The step of a bucket, ready for `jax.jit` with argument 1 donated."""
    layout = Layout(bucket, shapes)

    def step(leaves: tuple[jax.Array, ...], state: DeviceState, buffer: jax.Array):
        model, fields = skeleton.merge(leaves), layout.unpack(buffer)
        slot_T, batch = _arrange(bucket, shapes, fields)
        token_T = fields["token"]
        token_T = jnp.where(token_T < 0, state.last_S.at[slot_T].get(mode="clip"), token_T)
        counts_SV = _count(state.counts_SV, slot_T, token_T, fields["counted"])
        hidden_TD, cache = model(token_T, state.cache, batch)
        broken_S, broken_P = _mark_broken(state, fields, slot_T, hidden_TD, batch.slots_T, shapes.page_size)
        if bucket.kind == "mixed":
            hidden_TD = hidden_TD.at[fields["last"]].get(mode="fill", fill_value=0)
        slot_B = jnp.where(fields["sample_position"] > 0, fields["slot"], shapes.slots)
        samples = sample(
            model.logits(hidden_TD),
            _row_params(fields),
            lambda: counts_SV.at[slot_B].get(mode="clip"),
            broken_S.at[slot_B].get(mode="clip"),
        )
        last_S = state.last_S.at[slot_B].set(samples.token_B, mode="drop")
        return DeviceState(cache, last_S, counts_SV, broken_S, broken_P), samples

    return step


def _arrange(bucket: Bucket, shapes: Shapes, fields: Mapping[str, jax.Array]) -> tuple[jax.Array, Batch]:
    """The state slot of each token, and the model's batch."""
    position_T, table_BM = fields["position"], fields["table"]
    mixed = bucket.kind == "mixed"
    row_T = jnp.arange(bucket.tokens, dtype=jnp.int32)
    end_B = row_T + 1
    if mixed:
        row_T, end_B = fields["row"], fields["end"]
    batch = Batch(
        positions_T=position_T,
        lengths_T=fields["length"],
        slots_T=_cache_slots(position_T, row_T, table_BM, shapes.page_size),
        tables_BM=table_BM,
        starts_R=jnp.pad(end_B, (1, 0)),
        rows=fields["rows"][0],
        singles_B=fields["single"] if mixed else row_T,
        tiles=_tiles(fields) if mixed else None,
    )
    return fields["slot"][row_T], batch


def _count(counts_SV: jax.Array, slot_T: jax.Array, token_T: jax.Array, counted_T: jax.Array) -> jax.Array:
    """Counts tokens where a sequence has penalties; where none has, the counts are not so much as read."""

    def add() -> jax.Array:
        return counts_SV.at[slot_T, token_T].add(counted_T, mode="drop")

    return lax.cond(jnp.any(counted_T > 0), add, lambda: counts_SV)


def _mark_broken(
    state: DeviceState,
    fields: Mapping[str, jax.Array],
    slot_T: jax.Array,
    hidden_TD: jax.Array,
    cache_slot_T: jax.Array,
    page_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Remembers which sequences, and which pages, have met a number that is not finite.

    The cache keeps no such number, so without this a prompt that overflowed in the middle would go on as if
    nothing had happened. A page is sound again with the first token that is written to it anew; a sequence
    that takes a slot is as broken as the pages that it begins with.
    """
    slots, pages = state.broken_S.shape[0], state.broken_P.shape[0]
    used_T = fields["position"] >= 0
    page_T = cache_slot_T // page_size
    anew_T = used_T & (cache_slot_T % page_size == 0)
    broken_P = state.broken_P.at[jnp.where(anew_T, page_T, pages)].set(False, mode="drop")
    slot_B = jnp.where(fields["first"] > 0, fields["slot"], slots)

    def inherited() -> jax.Array:
        return state.broken_S.at[slot_B].set(broken_P[fields["table"]].any(axis=1), mode="drop")

    broken_S = lax.cond(jnp.any(fields["first"] > 0), inherited, lambda: state.broken_S)
    bad_T = used_T & ~jnp.isfinite(hidden_TD).all(axis=-1)
    broken_S = broken_S.at[jnp.where(bad_T, slot_T, slots)].set(True, mode="drop")
    return broken_S, broken_P.at[jnp.where(bad_T, page_T, pages)].set(True, mode="drop")


def _cache_slots(position_T: jax.Array, row_T: jax.Array, table_BM: jax.Array, page_size: int) -> jax.Array:
    """Where each token's key and value go; padding goes to the trash page."""
    place_T = jnp.maximum(position_T, 0)
    slot_T = table_BM[row_T, place_T // page_size] * page_size + place_T % page_size
    return jnp.where(position_T < 0, 0, slot_T)


def _tiles(fields: Mapping[str, jax.Array]) -> Tiles:
    return Tiles(
        start_C=fields["tile_start"],
        length_C=fields["tile_length"],
        row_C=fields["tile_row"],
        count=fields["tile_count"][0],
    )


def _row_params(fields: Mapping[str, jax.Array]) -> RowParams:
    return RowParams(
        seed_B2=fields["seed"],
        choice_B=fields["choice"],
        position_B=fields["sample_position"],
        temperature_B=fields["temperature"],
        top_p_B=fields["top_p"],
        min_p_B=fields["min_p"],
        top_k_B=fields["top_k"],
        frequency_B=fields["frequency"],
        presence_B=fields["presence"],
        wants_logprobs_B=fields["wants_logprobs"] > 0,
    )


def forget_counts(state: DeviceState, slot: jax.Array) -> DeviceState:
    """Zeroes a slot's counts, for a new sequence with penalties; i32 `[]`."""
    return state._replace(counts_SV=state.counts_SV.at[slot].set(0))
