"""The device program of a step: one pure function per bucket, with a donated state.

A step takes the parameters, the state and one packed buffer, and returns the new state and the samples:
embedding, all layers, the head on the rows that sample, the sampler. Nothing else is copied to the host.
`packing.py` fills the buffer, `buckets.py` defines its layout. On a mesh every device runs the step on its
share of the parameters and of the cache; everything else is equal on all devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding

from ...model.cache import Batch, Cache, Tiles, create_cache
from ...model.kernels.registry import Kernels
from ...model.kernels.zeros import zeros as portable_zeros
from ...model.lora import Lora, Stacks
from ...model.sharding import CACHE, REPLICATED, pad_config
from ...model.transformer import Skeleton
from ..request import packed_parameters
from .buckets import Bucket, Layout, Shapes
from .prompt_scoring import Scores, score_prompts
from .sampling import Adjustments, RowParams, Samples, allowed_of, sample, sample_plain


class DeviceState(NamedTuple):
    """The state on the device between steps; every step consumes it and returns the next one.

    Attributes:
      cache: the KV pools.
      last_S: i32 `[slots]`, each slot's newest sample: the next step's input before the host has read it.
      counts_SV, bias_SV, marks_SV: `[slots, V]`, see `sampling.Adjustments`; only for sequences that adjust
        logits.
      logits_SV: f32 `[slots, V]`, stored for the sequences with a sample that waits for a mask. It has one
        slot if there are no grammars, because JAX 0.11's compiler crashes on an empty array on a mesh.
      broken_S: bool `[slots]`, whether a number that is not finite has occurred in each slot's sequence.
      broken_P: bool `[pages]`, the same for each page, for sequences that reuse it later.
    """

    cache: Cache
    last_S: jax.Array
    counts_SV: jax.Array
    bias_SV: jax.Array
    marks_SV: jax.Array
    logits_SV: jax.Array
    broken_S: jax.Array
    broken_P: jax.Array


Outcome = tuple[Samples, Scores | None]
Leaves = Any
"""The parameters as `Skeleton.flatten` returns them; in adapted buckets a pair of them and the adapters."""
Step = Callable[[Leaves, DeviceState, jax.Array], tuple[DeviceState, Outcome]]

STATE = DeviceState._make([CACHE, *[REPLICATED] * (len(DeviceState._fields) - 1)])
"""How the state is divided among devices: the cache by heads, everything else is complete on each."""


def create_state(skeleton: Skeleton, shapes: Shapes, pages: int, dtype: jnp.dtype) -> DeviceState:
    """A new state, the shares of all devices together.

    Args:
      pages: of the cache, the trash page included. dtype: of keys and values.
    """
    config, target = skeleton.config, skeleton.target
    ids = (shapes.slots, config.vocabulary)
    zeros = target.kernels.zeros if target.shards == 1 else portable_zeros  # XLA divides only its own
    return DeviceState(
        cache=create_cache(pad_config(config, target.shards), pages, shapes.page_size, dtype, zeros),
        last_S=jnp.zeros(shapes.slots, jnp.int32),
        counts_SV=jnp.zeros(ids, jnp.int32),
        bias_SV=jnp.zeros(ids, jnp.float32),
        marks_SV=jnp.zeros(ids, jnp.uint8),
        logits_SV=jnp.zeros(ids if shapes.mask else (1, config.vocabulary), jnp.float32),
        broken_S=jnp.zeros(shapes.slots, jnp.bool),
        broken_P=jnp.zeros(pages, jnp.bool),
    )


def state_shardings(mesh: Mesh) -> DeviceState:
    """The shardings of the state on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), STATE)


def make_step(skeleton: Skeleton, bucket: Bucket, shapes: Shapes) -> Step:
    """The step of a bucket, ready for `jax.jit` with argument 1 donated."""
    layout, kernels = Layout(bucket, shapes), skeleton.target.kernels
    if bucket.kind == "sample":
        return _make_sampler(layout, kernels)

    def step(leaves: Leaves, state: DeviceState, buffer: jax.Array):
        leaves, stacks = leaves if bucket.adapted else (leaves, None)
        model, fields = skeleton.merge(leaves), layout.unpack(buffer)
        slot_T, batch = _arrange(bucket, shapes, fields)
        lora_T, lora_B = _adapters(bucket, fields, stacks) if stacks else (None, None)
        token_T = fields["token"]
        token_T = jnp.where(token_T < 0, state.last_S.at[slot_T].get(mode="clip"), token_T)
        state = state if bucket.plain else _count(state, slot_T, token_T, fields["counted"])
        hidden_TD, cache = model.hidden(token_T, state.cache, batch, skeleton.after_layer, lora_T)
        state = state._replace(cache=cache)
        state = _mark_broken(state, layout, fields, slot_T, hidden_TD, batch.entries_T)
        last_BD = hidden_TD.at[fields["last"]].get(mode="fill", fill_value=0) if bucket.tiled else hidden_TD
        logits_BV = model.logits(last_BD, batch.rows, lora_B)
        state, samples = _sample_or_hold(state, logits_BV, fields, layout, kernels)
        scores = score_prompts(model, fields, hidden_TD, lora_T) if "target" in fields else None
        return state, (samples, scores)

    return step


def _adapters(bucket: Bucket, fields: Mapping[str, jax.Array], stacks: Stacks) -> tuple[Lora, Lora]:
    """The adapters of the step's tokens and of its rows."""
    of_rows = Lora(index_T=fields["adapter"], stacks=stacks)
    return (of_rows.of_rows(fields["row"]) if bucket.tiled else of_rows), of_rows


def _sample_or_hold(
    state: DeviceState,
    logits_BV: jax.Array,
    fields: Mapping[str, jax.Array],
    layout: Layout,
    kernels: Kernels,
) -> tuple[DeviceState, Samples]:
    """Samples every row that samples, but stores the logits of rows that wait for a mask."""
    shapes, plain = layout.shapes, layout.bucket.plain
    slot_B = jnp.where(fields["sample_position"] > 0, fields["slot"], shapes.slots)
    samples = _draw(state, slot_B, logits_BV, fields, kernels, plain=plain)
    if plain or not shapes.mask:
        return state._replace(last_S=state.last_S.at[slot_B].set(samples.token_B, mode="drop")), samples
    waiting_B = fields["awaits_mask"] > 0
    free_B = jnp.where(waiting_B, shapes.slots, slot_B)
    stored_B = jnp.where(waiting_B, slot_B, shapes.slots)
    logits_SV = lax.cond(
        jnp.any(waiting_B),
        lambda: state.logits_SV.at[stored_B].set(logits_BV, mode="drop"),
        lambda: state.logits_SV,
    )
    last_S = state.last_S.at[free_B].set(samples.token_B, mode="drop")
    return state._replace(last_S=last_S, logits_SV=logits_SV), samples


def _make_sampler(layout: Layout, kernels: Kernels) -> Step:
    """A step that samples from stored logits, among the ids that a mask allows."""

    def draw(leaves: tuple[jax.Array, ...], state: DeviceState, buffer: jax.Array):
        fields = layout.unpack(buffer)
        slot_B = fields["slot"]
        logits_BV = state.logits_SV.at[slot_B].get(mode="clip")
        allowed_BV = allowed_of(fields["mask"], logits_BV.shape[1])
        samples = _draw(state, slot_B, logits_BV, fields, kernels, allowed_BV)
        last_S = state.last_S.at[slot_B].set(samples.token_B, mode="drop")
        return state._replace(last_S=last_S), (samples, None)

    return draw


def _draw(
    state: DeviceState,
    slot_B: jax.Array,
    logits_BV: jax.Array,
    fields: Mapping[str, jax.Array],
    kernels: Kernels,
    allowed_BV: jax.Array | None = None,
    *,
    plain: bool = False,
) -> Samples:
    """Samples a token for each row, with the state of its slot."""
    broken_B = state.broken_S.at[slot_B].get(mode="clip")
    if plain:
        return sample_plain(logits_BV, _row_params(fields), broken_B, kernels.draw)

    def adjustments() -> Adjustments:
        tables = (state.counts_SV, state.bias_SV, state.marks_SV)
        return Adjustments(*(table_SV.at[slot_B].get(mode="clip") for table_SV in tables))

    return sample(
        logits_BV, _row_params(fields), adjustments, broken_B, allowed_BV, kernels.row_sum, kernels.draw
    )


def _arrange(bucket: Bucket, shapes: Shapes, fields: Mapping[str, jax.Array]) -> tuple[jax.Array, Batch]:
    """The state slot of each token, and the batch for the model."""
    position_T, table_BM = fields["position"], fields["table"]
    row_T = jnp.arange(bucket.tokens, dtype=jnp.int32)
    end_B = row_T + 1
    if bucket.tiled:
        row_T, end_B = fields["row"], fields["end"]
    batch = Batch(
        positions_T=position_T,
        lengths_T=fields["length"],
        entries_T=_cache_entries(position_T, row_T, table_BM, shapes.page_size),
        tables_BM=table_BM,
        starts_R=jnp.pad(end_B, (1, 0)),
        rows=fields["rows"][0],
        singles_B=fields["single"] if bucket.tiled else row_T,
        tiles=_tiles(fields) if bucket.tiled else None,
    )
    return fields["slot"][row_T], batch


def _count(state: DeviceState, slot_T: jax.Array, token_T: jax.Array, counted_T: jax.Array) -> DeviceState:
    """Counts tokens of sequences with penalties; without such sequences the counts are not even read."""

    def add() -> jax.Array:
        return state.counts_SV.at[slot_T, token_T].add(counted_T, mode="drop")

    counts_SV = lax.cond(jnp.any(counted_T > 0), add, lambda: state.counts_SV)
    return state._replace(counts_SV=counts_SV)


def _mark_broken(
    state: DeviceState,
    layout: Layout,
    fields: Mapping[str, jax.Array],
    slot_T: jax.Array,
    hidden_TD: jax.Array,
    entries_T: jax.Array,
) -> DeviceState:
    """Marks the sequences and pages in which a number that is not finite has occurred.

    The cache does not store such numbers, so without the marks a prompt that overflows in the middle would
    continue as if nothing had happened. The first token that is written to a page clears its mark. A sequence
    that takes a slot inherits the marks of its first pages. This same step can fill those pages, so pages are
    marked first and sequences inherit after that.

    Tokens without a slot (padding, and the rows of a trial) leave no marks.
    """
    slots, pages = state.broken_S.shape[0], state.broken_P.shape[0]
    used_T = (fields["position"] >= 0) & (slot_T < slots)
    page_T = entries_T // layout.shapes.page_size
    cleared_T = used_T & (entries_T % layout.shapes.page_size == 0)
    bad_T = used_T & ~jnp.isfinite(hidden_TD).all(axis=-1)
    broken_P = state.broken_P.at[jnp.where(cleared_T, page_T, pages)].set(False, mode="drop")
    broken_P = broken_P.at[jnp.where(bad_T, page_T, pages)].set(True, mode="drop")
    slot_B = jnp.where(fields["first"] > 0, fields["slot"], slots)

    def inherited() -> jax.Array:
        return state.broken_S.at[slot_B].set(broken_P[fields["table"]].any(axis=1), mode="drop")

    some = jnp.any(fields["first"] > 0)
    broken_S = inherited() if layout.bucket.plain else lax.cond(some, inherited, lambda: state.broken_S)
    broken_S = broken_S.at[jnp.where(bad_T, slot_T, slots)].set(True, mode="drop")
    return state._replace(broken_S=broken_S, broken_P=broken_P)


def _cache_entries(position_T: jax.Array, row_T: jax.Array, table_BM: jax.Array, page_size: int) -> jax.Array:
    """The cache entry for each token's key and value; the trash page for padding."""
    place_T = jnp.maximum(position_T, 0)
    entry_T = table_BM[row_T, place_T // page_size] * page_size + place_T % page_size
    return jnp.where(position_T < 0, 0, entry_T)


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
        adjusts_B=fields["adjusts"] > 0,
        end_position_B=fields["end_position"],
        wants_logprobs_B=fields["wants_logprobs"] > 0,
        **{f"{name}_B": fields[name] for name in packed_parameters()},
    )


def put_adapter(stacks: Stacks, place: jax.Array, adapter: Stacks) -> Stacks:
    """The stacks with another adapter in a place, i32 `[]`."""
    return jax.tree.map(lambda stack, own: stack.at[place].set(own), stacks, adapter)


def prepare_slot(
    state: DeviceState, slot: jax.Array, counts_V: jax.Array, bias_V: jax.Array, marks_V: jax.Array
) -> DeviceState:
    """Prepares a slot for a sequence that adjusts logits: its counts so far, its bias, its marks."""
    return state._replace(
        counts_SV=state.counts_SV.at[slot].set(counts_V),
        bias_SV=state.bias_SV.at[slot].set(bias_V),
        marks_SV=state.marks_SV.at[slot].set(marks_V),
    )
