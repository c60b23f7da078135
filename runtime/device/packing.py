"""Writes a plan into a bucket's input buffer: the last thing the host does before a step. No JAX.

The tokens of the plan's rows follow each other. In a mixed bucket line i is the plan's i-th row; in a decode
bucket every token is a line.
"""

import numpy as np

from ..policy.sequence import Plan, Row, SequenceFault
from ..request import Request, packed_parameters
from .buckets import Bucket, Layout, Shapes
from .sampling import ENDING, PROMPTED

_COLDEST = 1e-5
"""Temperatures below this one are greedy: dividing by them overflows."""

_PACKED = tuple(packed_parameters())

Views = dict[str, np.ndarray]


def pack(rows: list[Row], bucket: Bucket, layout: Layout, shapes: Shapes) -> np.ndarray:
    """The step's input buffer, i32 `[layout.size]`; fresh, because the step reads it asynchronously.

    Raises:
      SequenceFault: a row cannot be packed.
    """
    buffer, views = layout.allocate()
    views["position"][:] = -1
    views["slot"][:] = shapes.slots
    at, mixed = 0, bucket.tiled
    if mixed:
        views["single"][:] = views["last"][:] = bucket.tokens
    for name in ("target", "adapter"):
        if name in views:
            views[name][:] = -1
    for line, row in enumerate(rows):
        span = slice(at, at + row.count)
        try:
            _pack_tokens(views, span, row)
            _pack_row(views, slice(line, line + 1) if mixed else span, row)
            if mixed:
                _pack_place(views, line, row, at, shapes.tile)
            if row.scored:
                _pack_targets(views, span, row)
        except Exception as error:
            raise SequenceFault(row.sequence) from error
        at += row.count
    views["rows"][0] = len(rows) if mixed else at
    return buffer


def pack_masked(rows: list[Row], layout: Layout, shapes: Shapes) -> tuple[np.ndarray, dict[Row, Exception]]:
    """The sampler's input buffer for rows with stored logits, with the masks of their grammars.

    Their step is already running, so a row that fails here does not stop the others: its line is padding, and
    its error is in the second result.
    """
    buffer, views = layout.allocate()
    views["slot"][:] = shapes.slots
    faults: dict[Row, Exception] = {}
    for line, row in enumerate(rows):
        assert row.sequence.matcher is not None
        try:
            _pack_settings(views, slice(line, line + 1), row)
            row.sequence.matcher.fill(views["mask"][line])
            views["slot"][line] = row.slot
        except Exception as error:
            faults[row] = error
    return buffer, faults


def adjustments_of(row: Row, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of each id for a sequence's first row in a slot; see `sampling.Adjustments`.

    The device counts generated tokens as they pass. Those whose pages were found do not pass.

    Returns:
      Counts i32, bias f32, marks u8, each `[V]`.

    Raises:
      SequenceFault: they cannot be computed.
    """
    try:
        return _counts_of(row, vocabulary), *_adjustments_of(row.sequence.request, vocabulary)
    except Exception as error:
        raise SequenceFault(row.sequence) from error


def _counts_of(row: Row, vocabulary: int) -> np.ndarray:
    """How often each id is among the generated tokens before the row, if there are penalties; i32 `[V]`."""
    request = row.sequence.request
    passed = row.sequence.tokens[len(request.prompt) : row.start] if request.params.penalises else []
    return np.bincount(np.array(passed, np.int64), minlength=vocabulary).astype(np.int32)


def _adjustments_of(request: Request, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    params = request.params
    allowed = params.allowed_ids
    bias_V = np.full(vocabulary, 0.0 if allowed is None else -np.inf, np.float32)
    bias_V[list(allowed or ())] = 0.0
    for token, value in params.logit_bias:
        bias_V[token] += value
    marks_V = np.zeros(vocabulary, np.uint8)
    marks_V[list(request.prompt)] |= PROMPTED
    marks_V[[token for token in params.stop_ids if token < vocabulary]] |= ENDING
    return bias_V, marks_V


def sampling_lines(plan: Plan, bucket: Bucket) -> list[range]:
    """The lines of each row's samples: one more than it has drafts, none if it does not sample."""
    lines, at = [], 0
    for row in plan.rows:
        at += 1 if bucket.tiled else row.count
        lines.append(range(at - row.samples * (1 + len(row.drafts)), at))
    return lines


def _pack_tokens(views: Views, span: slice, row: Row) -> None:
    sequence, prompt = row.sequence, len(row.sequence.request.prompt)
    known = [*sequence.tokens[row.start : row.start + row.count], *row.drafts]
    positions = np.arange(row.start, row.start + row.count)
    views["token"][span] = known + [-1] * (row.count - len(known))
    views["position"][span] = positions
    views["length"][span] = np.maximum(positions + 1, prompt)
    if sequence.request.params.penalises:
        views["counted"][span] = positions >= prompt


def _pack_row(views: Views, lines: slice, row: Row) -> None:
    sequence = row.sequence
    views["table"][lines, : len(sequence.pages)] = sequence.pages
    views["slot"][lines] = row.slot
    views["first"][lines] = row.first
    views["awaits_mask"][lines] = row.awaits_mask
    if "adapter" in views:
        views["adapter"][lines] = sequence.place
    if row.samples:
        _pack_settings(views, slice(lines.stop - 1 - len(row.drafts), lines.stop), row)


def _pack_settings(views: Views, lines: slice, row: Row) -> None:
    """The settings of the row's samples."""
    sequence, params = row.sequence, row.sequence.request.params
    end = row.start + row.count
    views["seed"][lines] = sequence.seed & 0xFFFFFFFF, sequence.seed >> 32 & 0xFFFFFFFF
    views["choice"][lines] = sequence.request.choice
    views["sample_position"][lines] = np.arange(end - len(row.drafts), end + 1)
    views["wants_logprobs"][lines] = params.logprobs is not None
    for name in _PACKED:
        views[name][lines] = getattr(params, name)
    if params.temperature < _COLDEST:
        views["temperature"][lines] = 0.0
    views["adjusts"][lines] = params.adjusts
    views["end_position"][lines] = len(sequence.request.prompt) + params.min_tokens


def _pack_targets(views: Views, span: slice, row: Row) -> None:
    """The ids that follow the row's tokens in the prompt; any id after the last one, then -1."""
    prompt = row.sequence.request.prompt
    known = [*prompt[row.start + 1 : row.start + row.count + 1], 0][: row.count]
    views["target"][span.start : span.start + len(known)] = known


def _pack_place(views: Views, line: int, row: Row, at: int, tile: int) -> None:
    """The place of the row's tokens in T, for attention and for the head."""
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
