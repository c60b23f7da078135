"""A step that is launched. Reading it waits for its results, and assigns them to its rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..policy.output_processor import Sampled
from ..policy.scores import ChunkScores
from ..policy.sequence import Plan, Row
from ..request import TokenLogprobs
from .buckets import Bucket
from .page_copies import Reading
from .sampling import Samples
from .steps import Scores


@dataclass(frozen=True, slots=True)
class InFlightStep:
    """A step that is launched and not yet read.

    Attributes:
      plan, bucket: the planned rows and the compiled shape. launched: when (`time.monotonic`).
      samples, scores: its results, not yet computed.
      masked: the rows that were sampled with a grammar's mask, and their samples.
      faults: the errors of those of them that have no mask.
      saved: pages on their way to host memory.
    """

    plan: Plan
    bucket: Bucket
    launched: float
    samples: Samples
    scores: Scores | None
    masked: tuple[list[Row], Samples] | None = None
    faults: dict[Row, Exception] = field(default_factory=dict)
    saved: list[Reading] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the device has finished it."""
        last = self.masked[1] if self.masked else self.samples
        # All arrays of JAX have the method; `jax.Array` does not declare it.
        return bool(last.token_B.is_ready())  # type: ignore[attr-defined]


def read_samples(
    rows: Sequence[tuple[Row, range]], samples: Samples
) -> list[tuple[Row, Sampled | Exception]]:
    """Each row with its samples, from its lines, or with the error if they cannot be read.

    Log-probabilities are copied only if they are requested.
    """
    tokens = np.asarray(samples.token_B)
    wanted = [row.sequence.request.params.logprobs for row, _ in rows]
    if all(count is None for count in wanted):
        return [(row, [(int(tokens[line]), None) for line in lines]) for row, lines in rows]
    reports = _Reports(samples.logprob_BX, samples.top_BX)
    return [
        (row, _read(tokens, lines, reports, count)) for (row, lines), count in zip(rows, wanted, strict=True)
    ]


def _read(tokens: np.ndarray, lines: range, reports: "_Reports", count: int | None) -> Sampled | Exception:
    try:
        return [(int(tokens[line]), None if count is None else reports.of(line, count)) for line in lines]
    except Exception as error:
        return error


def read_chunks(rows: Sequence[Row], scores: Scores) -> dict[Row, Exception]:
    """Adds a step's results for prompt tokens to each sequence; returns the errors by row."""
    faults: dict[Row, Exception] = {}
    hidden_BD, at = np.asarray(scores.hidden_BD), 0
    reports = _Reports(scores.logprob_TX, scores.top_TX)
    for line, row in enumerate(rows):
        if row.scored:
            try:
                _read_chunk(row, reports, at, hidden_BD[line])
            except Exception as error:
                faults[row] = error
        at += row.count
    return faults


def _read_chunk(row: Row, reports: "_Reports", at: int, hidden_D: np.ndarray) -> None:
    assert row.sequence.scores is not None
    count = row.sequence.request.params.prompt_logprobs
    lines = range(at, at + row.count) if count is not None else ()
    chunk = [reports.of(place, count or 0) for place in lines]
    row.sequence.scores.add(row.start, ChunkScores(chunk, hidden_D))


class _Reports:
    """Log-probabilities by line, copied from the device in one go."""

    def __init__(self, logprob_NX: object, top_NX: object) -> None:
        self._logprob_NX, self._top_NX = np.asarray(logprob_NX), np.asarray(top_NX)

    def of(self, line: int, count: int) -> TokenLogprobs:
        """Those of the line's token, and of the `count` most likely ones."""
        logprob_X = self._logprob_NX[line]
        pairs = zip(self._top_NX[line, :count].tolist(), logprob_X[1 : 1 + count].tolist(), strict=True)
        return TokenLogprobs(chosen=float(logprob_X[0]), top=tuple(pairs))
