"""What becomes of a step's samples: tokens of their sequences, ends, drafts that were right. No JAX.

Knows sequences and events; who runs next is the scheduler's business, what else is heard the engine's.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..request import IMPOSSIBLE, TokenEvent, TokenLogprobs
from .sequence import Row, Sequence, reason_of

log = logging.getLogger(__name__)

Sampled = list[tuple[int, TokenLogprobs | None]]
"""Of one row, what it sampled: the token (or why there is none, see `request.NOT_FINITE`), and its
log-probabilities if they were wanted."""


@dataclass(slots=True)
class Counts:
    """What has been done since the start; the fields are those of `EngineStats`."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class OutputProcessor:
    """Keeps the sequences' books, one step after the other."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        """`drop` takes a request out of the engine."""
        self.counts = Counts()
        self._drop = drop

    def process(self, rows: Iterable[tuple[Row, Sampled | Exception]]) -> list[TokenEvent]:
        """Gives each sequence its samples; one that ended meanwhile gets none.

        A sequence whose samples could not be read, or at which something else goes wrong here, ends.
        """
        events: list[TokenEvent] = []
        for row, sampled in rows:
            row.sequence.pending -= row.samples
            if row.sequence.finished:
                continue
            try:
                events += self._advance(row, sampled)
            except Exception as error:
                events.append(self._fail_row(row, error))
        return events

    def _fail_row(self, row: Row, error: Exception) -> TokenEvent:
        name = row.sequence.request.id
        log.error("request %r cannot be settled", name, exc_info=error)
        row.sequence.computed = row.start  # what the step has computed may be of drafts that were wrong
        return self._fail(name, reason_of(error))

    def count_step(self, rows: Iterable[Row]) -> None:
        """A step with these rows has run."""
        self.counts.steps += 1
        self.counts.prompt_tokens += sum(map(_prompt_tokens, rows))

    def _advance(self, row: Row, sampled: Sampled | Exception) -> list[TokenEvent]:
        """The samples up to the first one that no draft has foreseen, or that ends the sequence."""
        if isinstance(sampled, Exception):
            raise sampled
        events: list[TokenEvent] = []
        for (token, report), draft in zip(sampled, (*row.drafts, None), strict=True):
            events.append(self._add_token(row.sequence, token, report))
            if row.sequence.finished or token != draft:
                break
        if row.drafts:
            self._count_drafts(row, len(events) - 1)
        return events

    def _count_drafts(self, row: Row, accepted: int) -> None:
        """So many drafts were right: what was computed after them is void."""
        row.sequence.computed = row.start + 1 + accepted
        row.sequence.drafter.learn(len(row.drafts), accepted)
        self.counts.drafted_tokens += len(row.drafts)
        self.counts.accepted_tokens += accepted

    def _add_token(self, sequence: Sequence, token: int, report: TokenLogprobs | None) -> TokenEvent:
        """Gives a sequence its next token, or ends it."""
        name = sequence.request.id
        if sequence.matcher is not None and sequence.matcher.error:
            return self._refuse_grammar(name, sequence.matcher.error)
        if token == IMPOSSIBLE and sequence.matcher is not None:
            return self._refuse_grammar(name, "no token may come next under the grammar and the allowed ids")
        if token < 0:
            return self._fail(name, "the model's output is not finite")
        first = self._prompt_report(sequence)
        if token in sequence.ends:
            self._drop(name)
            return TokenEvent(request_id=name, finish="stop", end=token, logprobs=report, **first)
        sequence.tokens.append(token)
        self.counts.generated_tokens += 1
        if sequence.matcher is not None:
            sequence.matcher.consume(token)
            if sequence.matcher.error:
                return self._refuse_grammar(name, sequence.matcher.error)
        finish = _end(sequence)
        if finish:
            self._drop(name)
        return TokenEvent(request_id=name, token=token, logprobs=report, finish=finish, **first)

    def _fail(self, name: str, reason: str) -> TokenEvent:
        self._drop(name)
        return TokenEvent(request_id=name, finish="error", error=reason)

    def _refuse_grammar(self, name: str, reason: str) -> TokenEvent:
        """The request's own grammar is at fault, alone or beside `allowed_ids`, found out only now."""
        self._drop(name)
        return TokenEvent(request_id=name, finish="error", error=reason, param="grammar")

    def _prompt_report(self, sequence: Sequence) -> dict[str, Any]:
        """What the first event says of the prompt, and no other."""
        if len(sequence.tokens) > len(sequence.request.prompt):
            return {}
        said: dict[str, Any] = {"cached_tokens": sequence.cached or 0, "waited": sequence.waited}
        self.counts.cached_tokens += said["cached_tokens"]
        params, scores = sequence.request.params, sequence.scores
        if scores and params.prompt_logprobs is not None:
            said["prompt_logprobs"] = scores.logprobs
        if scores and params.pool_prompt:
            said["pooled"] = scores.pooled
        return said


def _end(sequence: Sequence) -> Literal["stop", "length"] | None:
    """Why a sequence ends with its newest token, if it does."""
    if sequence.matcher is not None and sequence.matcher.complete:
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.limit else None


def _prompt_tokens(row: Row) -> int:
    return max(0, min(row.start + row.count, len(row.sequence.request.prompt)) - row.start)
