"""What a step is tried with: full rows, of which nothing remains. No JAX.

How long a step takes is learned from a trial, and with padding alone there would be little to learn: no
expert would be computed, hardly a page read. So every row of a trial holds tokens, as many as the step takes,
and samples. They belong to no slot, and their pages are all the trash page: the device then writes nothing
that a sequence could read.
"""

from collections.abc import Mapping

import numpy as np

from ..policy.scores import PromptScores
from ..policy.sequence import Row, Sequence
from ..request import Request, SamplingParams
from .buckets import Bucket, Shapes, choose

_PARAMS = SamplingParams(temperature=1.0, top_p=0.9)
"""A draw as most requests want it."""
_CONVERSATION = 512
"""Tokens behind a row that decodes: many answers are given to as many."""
_STRIDE = 7919
"""Between the ids of neighbours, a prime: different tokens go to different experts."""


def trial_rows(bucket: Bucket, shapes: Shapes, vocabulary: int, *, scored: bool = False) -> list[Row]:
    """Rows that fill a bucket: as few prompts as hold its tokens, or the newest tokens of conversations.

    Args:
      scored: prompts' tokens all go through the head, as where their log-probabilities are wanted.
    """
    context = shapes.table * shapes.page_size
    if bucket.tiled:
        sequence = _sequence(min(bucket.tokens, context), vocabulary, bucket)
        sequence.scores = PromptScores(len(sequence.tokens)) if scored else None
        whole, rest = divmod(bucket.tokens, context)
        counts = [context] * whole + [rest] * (rest > 0)
        return [Row(sequence, shapes.slots, 0, count, samples=True) for count in counts[: bucket.rows]]
    length = min(context, _CONVERSATION)
    sequence = _sequence(length, vocabulary, bucket)
    starts = [length - 1 - n % length for n in range(bucket.rows)]
    return [Row(sequence, shapes.slots, start, 1, samples=True) for start in starts]


def decode_seconds(trials: Mapping[Bucket, float], slots: int) -> float:
    """Seconds of the step that one decode row of each slot goes into; 0.0 where nothing was tried."""
    return trials[choose(trials, "decode", slots)] if trials else 0.0


def prompt_seconds(trials: Mapping[Bucket, float]) -> float:
    """Seconds per token of the largest step that takes in prompts; 0.0 where nothing was tried."""
    steps = [bucket for bucket in trials if bucket.kind != "sample"]
    if not steps:
        return 0.0
    largest = max(steps, key=lambda bucket: (bucket.tokens, bucket.tiled))
    return trials[largest] / largest.tokens


def _sequence(length: int, vocabulary: int, bucket: Bucket) -> Sequence:
    prompt = tuple(n * _STRIDE % vocabulary for n in range(length))
    return Sequence(
        request=Request(id="trial", prompt=prompt, params=_PARAMS),
        seed=0,
        limit=length,
        arrival=0,
        tokens=list(prompt),
        matcher=_Anything() if bucket.kind == "sample" else None,
    )


class _Anything:
    """A grammar that allows every id."""

    error = None
    complete = False

    def fill(self, mask_W: np.ndarray) -> None:
        mask_W[:] = np.uint32(0xFFFFFFFF)

    def consume(self, token: int) -> None: ...
