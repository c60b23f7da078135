"""The few static shapes of steps, and the layout of each one's input.

A step is compiled for a *bucket*: `decode` for B rows of one token, `mixed` for T tokens of prompts and
running rows together (with as many rows as there are slots). Buckets are powers of two, so a request is
padded at most twofold and there are log2(slots) + log2(budget) executables. If prompts can be scored, a mixed
step also returns the scores of the tokens that have a target. With grammars there is one more kind: `sample`
draws for B rows from the logits that an earlier step has stored, among the ids that the grammars allow.

A step skips with `lax.cond` what no row needs. On a GPU the host waits for the device at each of them, so
there every step exists twice: one for all requests, and a *plain* one without any condition for steps in
which all rows are greedy or just draw.

In a decode step every token is a row of its own, with its own position in a sequence. So tokens of one
sequence can be neighbours there, each attending to those before it, as drafts do. A deterministic engine has
one decode bucket and no others, for prompts too.

All inputs of a step are in one i32 buffer: one transfer, no overhead per array. `Layout` has the place of
each field; the host fills numpy views of the buffer, the device slices it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jax
import numpy as np
from jax import lax

from ..request import packed_parameters

SMALLEST_MIXED = 16
"""Tokens in the smallest mixed bucket; a smaller one is not faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A compiled shape: `tokens` is T, `rows` is B (equal for decode).

    `plain`: only for rows that are greedy or just draw (see `Row.plain`); without a condition.
    `adapted`: rows can have adapters; the others have no code for them.
    """

    kind: Literal["decode", "mixed", "sample"]
    tokens: int
    rows: int
    plain: bool = False
    adapted: bool = False

    def __str__(self) -> str:
        traits = "adapted " * self.adapted + "plain " * self.plain
        return f"{traits}{self.kind}({self.tokens})"

    @property
    def tiled(self) -> bool:
        """Whether a row can have several tokens."""
        return self.kind == "mixed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """The sizes that all buckets of an engine share.

    Attributes:
      slots: sequences that decode at the same time. budget: the maximum number of tokens in a step.
      page_size: tokens per page. table: M, pages in the longest sequence.
      tile: queries per tile in a mixed step.
      single: every step has the same shape, `decode(budget)`.
      mask: words of a grammar's mask; 0 without grammars. scores: prompts can be scored.
      plain: every decode and mixed bucket exists as a plain one too; not if `single`.
      adapters: the most on the device at once; if there are any, every decode and mixed bucket exists as an
        adapted one too.
    """

    slots: int
    budget: int
    page_size: int
    table: int
    tile: int
    single: bool = False
    mask: int = 0
    scores: bool = False
    plain: bool = False
    adapters: int = 0

    def buckets(self) -> list[Bucket]:
        """Every bucket, the most useful first; the first one is enough for any row without a grammar."""
        steps = self._steps()
        adapted = [replace(bucket, adapted=True) for bucket in steps] if self.adapters else []
        samplers = self._samplers()[-1:] if self.single else self._samplers()[::-1]
        return adapted[:1] + steps + adapted[1:] + samplers

    def _steps(self) -> list[Bucket]:
        """The buckets of steps without adapters."""
        if self.single:
            return [Bucket(kind="decode", tokens=self.budget, rows=self.budget)]
        decode = [Bucket(kind="decode", tokens=b, rows=b) for b in _powers(1, self.slots)]
        lowest = min(SMALLEST_MIXED, self.budget)
        mixed = [Bucket(kind="mixed", tokens=t, rows=self.slots) for t in _powers(lowest, self.budget)]
        every = mixed[-1:] + decode[-1:] + decode[:-1] + mixed[:-1]
        plain = [replace(bucket, plain=True) for bucket in every] if self.plain else []
        return every[:2] + plain + every[2:]

    def essential(self) -> list[Bucket]:
        """The buckets that are enough for any request."""
        buckets = self.buckets()
        return buckets[:1] + [bucket for bucket in buckets if bucket.kind == "sample"][:1]

    def _samplers(self) -> list[Bucket]:
        sizes = _powers(1, self.slots) if self.mask else []
        return [Bucket(kind="sample", tokens=b, rows=b) for b in sizes]

    def tiles(self, bucket: Bucket) -> int:
        """C: enough tiles for any split of T tokens among the rows."""
        return bucket.tokens // self.tile + bucket.rows


def _powers(lowest: int, highest: int) -> list[int]:
    """`lowest`, doubled up to `highest`, which is always the last."""
    sizes = []
    while lowest < highest:
        sizes.append(lowest)
        lowest *= 2
    return [*sizes, highest]


_ROW_FIELDS = {
    "slot": np.int32,
    "choice": np.int32,
    "sample_position": np.int32,
    "wants_logprobs": np.int32,
    "adjusts": np.int32,
    "end_position": np.int32,
    **{name: np.int32 if kind is int else np.float32 for name, kind in packed_parameters().items()},
}
_STEP_FIELDS = ("first", "awaits_mask")
_TOKEN_FIELDS = ("token", "position", "length", "counted")
_TILE_FIELDS = ("tile_start", "tile_length", "tile_row")


class Layout:
    """The place of each input of a bucket in its buffer.

    Fields per token: `token` (-1: the row's last sample), `position` (-1: padding), `length` (see
    `model.rotary`), `counted` (1 if penalties count it). Per row: the parameters of
    `request.packed_parameters` and the other sampling settings, `slot` (the number of slots for padding),
    `first` (1 if the sequence has just taken the slot), `awaits_mask` (1 if the logits wait for a mask),
    `seed` and the page `table`, and in adapted buckets `adapter` (-1: none); `sample_position` is 0 if a
    row does not sample, before `end_position` the sequence must not end; `rows` is the number in use. In
    tiled buckets also `row` per token; per row `end`, behind its tokens in T, and `single` and `last`
    (indices into T, T for none: a row without a single token, a row that does not sample); the tiles; and,
    if prompts can be scored, per token `target`, the id that follows it, -1 for a token without a score. A
    sample bucket has only the settings and `mask`.
    """

    def __init__(self, bucket: Bucket, shapes: Shapes) -> None:
        rows, tokens = bucket.rows, bucket.tokens
        fields: dict[str, tuple[tuple[int, ...], type]] = {}
        fields |= {name: ((rows,), dtype) for name, dtype in _ROW_FIELDS.items()}
        fields["seed"] = ((rows, 2), np.uint32)
        if bucket.kind == "sample":
            fields["mask"] = ((rows, shapes.mask), np.uint32)
        else:
            fields |= {name: ((tokens,), np.int32) for name in _TOKEN_FIELDS}
            fields |= {name: ((rows,), np.int32) for name in _STEP_FIELDS}
            fields |= {"table": ((rows, shapes.table), np.int32), "rows": ((1,), np.int32)}
        if bucket.adapted:
            fields["adapter"] = ((rows,), np.int32)
        if bucket.tiled and shapes.scores and not bucket.plain:
            fields["target"] = ((tokens,), np.int32)
        if bucket.tiled:
            tiles = shapes.tiles(bucket)
            fields |= {"row": ((tokens,), np.int32), "single": ((rows,), np.int32)}
            fields |= {"last": ((rows,), np.int32), "end": ((rows,), np.int32)}
            fields["tile_count"] = ((1,), np.int32)
            fields |= {name: ((tiles,), np.int32) for name in _TILE_FIELDS}
        self._fields = fields
        self.bucket, self.shapes = bucket, shapes
        self.size = sum(math.prod(shape) for shape, _ in fields.values())

    def allocate(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A zeroed buffer and views of its fields. Never reuse one: a step reads it asynchronously."""
        buffer = np.zeros(self.size, np.int32)
        return buffer, {n: buffer[a:b].view(t).reshape(s) for n, a, b, s, t in self._spans()}

    def unpack(self, buffer: jax.Array) -> Mapping[str, jax.Array]:
        """The fields on the device, sliced out of the buffer."""
        return {
            name: lax.bitcast_convert_type(buffer[start:end], dtype).reshape(shape)
            for name, start, end, shape, dtype in self._spans()
        }

    def _spans(self):
        start = 0
        for name, (shape, dtype) in self._fields.items():
            end = start + math.prod(shape)
            yield name, start, end, shape, dtype
            start = end


def choose(
    buckets: Iterable[Bucket], kind: str, tokens: int, *, plain: bool = False, adapted: bool = False
) -> Bucket:
    """The smallest of these buckets of a kind that holds this many tokens; a mixed one if no other is
    compiled yet.

    Args:
      plain: all rows are plain; a plain bucket is preferred then, and excluded otherwise.
      adapted: some rows have adapters; only an adapted bucket fits then, and is avoided otherwise.
    """
    fitting = [
        bucket
        for bucket in buckets
        if bucket.kind in (kind, "mixed")
        and bucket.tokens >= tokens
        and plain >= bucket.plain
        and bucket.adapted >= adapted
    ]
    return min(fitting, key=lambda each: (each.kind != kind, each.tokens, each.adapted, not each.plain))
