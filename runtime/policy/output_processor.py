"""Processes a step's samples: new tokens of sequences, ends, accepted drafts. No JAX.

It knows sequences and events. The scheduler decides what runs next; the loop sends the events out.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..request import IMPOSSIBLE, TokenEvent, TokenLogprobs
from .accounts import charge, used
from .sequence import Plan, Row, Sequence, reason_of

log = logging.getLogger(__name__)

Sampled = list[tuple[int, TokenLogprobs | None]]
"""The samples of one row: each token (or why there is none, see `request.NOT_FINITE`) and, if they were
requested, its log-probabilities."""


@dataclass(slots=True)
class Counts:
    """Totals since the start; the fields are those of `EngineStats`."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    device_seconds: float = 0.0
    page_seconds: float = 0.0


class OutputProcessor:
    """Turns samples into events and updates the sequences, step by step."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        """`drop` removes a request from the engine."""
        self.counts = Counts()
        self._drop = drop

    def process(self, rows: Iterable[tuple[Row, Sampled | Exception]]) -> list[TokenEvent]:
        """Adds each row's samples to its sequence, except to one that has ended meanwhile.

        A sequence ends with an error if its samples could not be read or cannot be processed.
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
        log.error("the samples of request %r cannot be processed", row.sequence.request.id, exc_info=error)
        row.sequence.computed = row.start  # the step may have computed drafts that were wrong
        return self._fail(row.sequence, reason_of(error))

    def count_step(self, plan: Plan, seconds: float) -> None:
        """Counts a step that took so long, and charges it to its sequences; before `process`."""
        self.counts.steps += 1
        self.counts.prompt_tokens += sum(map(_prompt_tokens, plan.rows))
        self.counts.device_seconds += seconds
        self.counts.page_seconds += charge(plan, seconds)

    def _advance(self, row: Row, sampled: Sampled | Exception) -> list[TokenEvent]:
        """Adds the samples up to the first that differs from its draft or ends the sequence."""
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
        """Counts accepted drafts; everything computed after them is invalid."""
        row.sequence.computed = row.start + 1 + accepted
        row.sequence.drafter.learn(len(row.drafts), accepted)
        self.counts.drafted_tokens += len(row.drafts)
        self.counts.accepted_tokens += accepted

    def _add_token(self, sequence: Sequence, token: int, report: TokenLogprobs | None) -> TokenEvent:
        """Adds the next token to a sequence, or ends it."""
        name = sequence.request.id
        if sequence.matcher is not None and sequence.matcher.error:
            return self._refuse_grammar(sequence, sequence.matcher.error)
        if token == IMPOSSIBLE and sequence.matcher is not None:
            return self._refuse_grammar(sequence, "the grammar and the allowed ids together allow no token")
        if token < 0:
            return self._fail(sequence, "the model's output is not finite")
        first = self._prompt_report(sequence)
        if token in sequence.ends:
            self._drop(name)
            return TokenEvent(
                request_id=name, finish="stop", end=token, logprobs=report, **first, **used(sequence)
            )
        sequence.tokens.append(token)
        self.counts.generated_tokens += 1
        if sequence.matcher is not None:
            sequence.matcher.consume(token)
            if sequence.matcher.error:
                return self._refuse_grammar(sequence, sequence.matcher.error)
        finish = _end(sequence)
        if finish:
            self._drop(name)
        return TokenEvent(
            request_id=name, token=token, logprobs=report, finish=finish, **first, **used(sequence)
        )

    def _fail(self, sequence: Sequence, reason: str, param: str | None = None) -> TokenEvent:
        self._drop(sequence.request.id)
        return TokenEvent(
            request_id=sequence.request.id, finish="error", error=reason, param=param, **used(sequence)
        )

    def _refuse_grammar(self, sequence: Sequence, reason: str) -> TokenEvent:
        """Ends a request with an invalid grammar, alone or with `allowed_ids`, that only shows now."""
        return self._fail(sequence, reason, "grammar")

    def _prompt_report(self, sequence: Sequence) -> dict[str, Any]:
        """What the first event reports about the prompt; empty for later events."""
        if len(sequence.tokens) > len(sequence.request.prompt):
            return {}
        cached = sequence.cached or 0
        fields: dict[str, Any] = {"cached_tokens": cached, "waited": sequence.waited, "miss": sequence.miss}
        fields["written_tokens"] = sequence.written
        self.counts.cached_tokens += fields["cached_tokens"]
        params, scores = sequence.request.params, sequence.scores
        if scores and params.prompt_logprobs is not None:
            fields["prompt_logprobs"] = scores.logprobs
        if scores and params.pool_prompt:
            fields["pooled"] = scores.pooled
        return fields


def _end(sequence: Sequence) -> Literal["stop", "length"] | None:
    """The reason to end a sequence after its newest token; None if it continues."""
    if sequence.matcher is not None and sequence.matcher.complete:
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.limit else None


def _prompt_tokens(row: Row) -> int:
    return max(0, min(row.start + row.count, len(row.sequence.request.prompt)) - row.start)
