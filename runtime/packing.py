"""Writes a plan into a bucket's input buffer: the last thing the host does before a step. No JAX.

Row i of the step is the plan's i-th row, and the tokens of all rows lie one behind the other.
"""

import numpy as np

from .buckets import Bucket, Layout, Shapes
from .scheduler import Plan, Row, Sequence

_COLDEST = 1e-5
"""Temperatures below this one are greedy: dividing by them overflows."""

Views = dict[str, np.ndarray]


def pack(plan: Plan, bucket: Bucket, layout: Layout, shapes: Shapes) -> np.ndarray:
    """The step's input buffer, i32 `[layout.size]`; fresh, because the step reads it asynchronously."""
    buffer, views = layout.allocate()
    views["position"][:] = -1
    views["slot"][:] = shapes.slots
    if bucket.kind == "mixed":
        views["single"][:] = views["last"][:] = bucket.tokens
    views["rows"][0] = len(plan.rows)
    at = 0
    for line, row in enumerate(plan.rows):
        _pack_tokens(views, slice(at, at + row.count), row)
        _pack_row(views, line, row)
        if bucket.kind == "mixed":
            _pack_place(views, line, row, at, shapes.tile)
        at += row.count
    return buffer


def _pack_tokens(views: Views, span: slice, row: Row) -> None:
    sequence, prompt = row.sequence, len(row.sequence.request.prompt)
    known = sequence.tokens[row.start : row.start + row.count]
    positions = np.arange(row.start, row.start + row.count)
    views["token"][span] = known + [-1] * (row.count - len(known))
    views["position"][span] = positions
    views["length"][span] = np.maximum(positions + 1, prompt)
    if has_penalties(sequence):
        views["counted"][span] = positions >= prompt


def has_penalties(sequence: Sequence) -> bool:
    """Whether the device must count what this sequence generates."""
    params = sequence.request.params
    return bool(params.frequency_penalty or params.presence_penalty)


def _pack_row(views: Views, line: int, row: Row) -> None:
    sequence, params = row.sequence, row.sequence.request.params
    views["table"][line, : len(sequence.pages)] = sequence.pages
    views["slot"][line] = row.slot
    if not row.samples:
        return
    views["seed"][line] = sequence.seed & 0xFFFFFFFF, sequence.seed >> 32 & 0xFFFFFFFF
    views["choice"][line] = sequence.request.choice
    views["sample_position"][line] = row.start + row.count
    views["top_k"][line] = params.top_k
    views["wants_logprobs"][line] = params.logprobs is not None
    views["temperature"][line] = params.temperature if params.temperature >= _COLDEST else 0.0
    views["top_p"][line] = params.top_p
    views["min_p"][line] = params.min_p
    views["frequency"][line] = params.frequency_penalty
    views["presence"][line] = params.presence_penalty


def _pack_place(views: Views, line: int, row: Row, at: int, tile: int) -> None:
    """Where the row's tokens are in T, for attention and for the head."""
    views["row"][at : at + row.count] = line
    views["end"][line:] = at + row.count
    if row.samples:
        views["last"][line] = at + row.count - 1
    if row.count == 1:
        views["single"][line] = at
        return
    for start in range(0, row.count, tile):
        index = views["tile_count"][0]
        views["tile_start"][index] = at + start
        views["tile_length"][index] = min(tile, row.count - start)
        views["tile_row"][index] = line
        views["tile_count"][0] += 1
