"""The input of a trial, which measures how long a step takes: full rows that leave no trace. No JAX.

A trial with padding only would not be realistic: it would compute no expert and read hardly any page. So
every row of a trial holds as many tokens as the step takes, and samples. The rows belong to no slot, and all
their pages are the trash page, so the device writes nothing that a sequence could read.
"""

from collections.abc import Mapping

import numpy as np

from ..policy.sequence import Row, Sequence
from ..request import Request, SamplingParams
from .buckets import Bucket, Shapes, choose

_PARAMS = SamplingParams(temperature=1.0, top_p=0.9)
"""The sampling of most requests."""
_CONVERSATION = 512
"""Tokens before a decode row, a common length."""
_STRIDE = 7919
"""The distance between neighbouring ids, a prime: different tokens go to different experts."""


def trial_rows(bucket: Bucket, shapes: Shapes, vocabulary: int) -> list[Row]:
    """Rows that fill a bucket: as few prompts as possible, or the newest tokens of conversations."""
    context = shapes.table * shapes.page_size
    if bucket.tiled:
        sequence = _sequence(min(bucket.tokens, context), vocabulary, bucket)
        whole, rest = divmod(bucket.tokens, context)
        counts = [context] * whole + [rest] * (rest > 0)
        return [Row(sequence, shapes.slots, 0, count, samples=True) for count in counts[: bucket.rows]]
    length = min(context, _CONVERSATION)
    sequence = _sequence(length, vocabulary, bucket)
    starts = [length - 1 - n % length for n in range(bucket.rows)]
    return [Row(sequence, shapes.slots, start, 1, samples=True) for start in starts]


def decode_seconds(trials: Mapping[Bucket, float], slots: int) -> float:
    """Seconds of a step with one decode row per slot; 0.0 without trials."""
    return trials[choose(trials, "decode", slots, plain=True)] if trials else 0.0


def prompt_seconds(trials: Mapping[Bucket, float]) -> float:
    """Seconds per token of the largest step that takes prompts; 0.0 without trials."""
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
        matcher=_AllowAll() if bucket.kind == "sample" else None,
    )


class _AllowAll:
    """A grammar that allows every id."""

    error = None
    complete = False

    def fill(self, mask_W: np.ndarray) -> None:
        mask_W[:] = np.uint32(0xFFFFFFFF)

    def consume(self, token: int) -> None: ...
