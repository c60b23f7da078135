"""Answers one submitted call of any protocol, as a stream or in one piece, and records its metrics.

A `Reply` defines the format of its protocol's answers. This module ensures that the end of a call, for any
reason (an answer, a disconnect, a timeout, a defect), also aborts its sequences in the engine. A whole reply
folds the same deltas that a stream sends.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sanic import HTTPResponse

from ..call_record import CallRecord
from ..encode import KEEP_ALIVE, to_json_by_items
from ..errors import ApiError, as_api_error
from ..protocol.usage import Usage
from ..text.choice import ChoiceText
from ..text.choices import deltas
from ..text.deltas import Delta, End
from ..text.generation import Generation
from .cache_explained import cache_header, explains
from .charge import Charge, charged
from .context import ApiRequest
from .resuming import StreamGroups
from .traced import trace_end, trace_usage

KEEP_ALIVE_SECONDS = 15.0
"""The longest silence in a stream: load balancers close a connection after 60 s without a byte."""

_JSON_OF_TOKEN = 16
"""The assumed characters of an answer for each token; with log-probabilities there are many more."""
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Reply(Protocol):
    """The format of one answer in one protocol."""

    def opening(self) -> Iterable[bytes]:
        """The first events of a stream, before any output of the model."""
        ...

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterable[bytes]:
        """The events for a delta; `usage` returns the token counts so far, for protocols that send them."""
        ...

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """The events after all choices have ended."""
        ...

    def failure(self, error: ApiError) -> Iterable[bytes]:
        """The events for an error that ends the stream."""
        ...

    def fold(self, delta: Delta) -> None:
        """Adds a delta to the whole reply."""
        ...

    def whole(self, usage: Usage) -> Any:
        """The whole reply, as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class SubmittedCall:
    """One submitted call: its deltas, and the format of its answer.

    Attributes:
      prompt_tokens: each prompt counted once. per_prompt: the number of choices for each prompt.
      shows_resources: whether its usage reports what it has used of the engines.
    """

    prompt_tokens: int
    per_prompt: int
    generation: Generation
    choices: Sequence[ChoiceText]
    reply: Reply
    record: CallRecord
    charge: Charge
    shows_resources: bool = False

    async def deltas(self) -> AsyncIterator[list[Delta] | None]:
        """The deltas of all choices, those of one event together; records them in the metrics."""
        begun = False
        async for found in deltas(self.generation, self.choices, KEEP_ALIVE_SECONDS):
            if found and not begun and not self.generation.replaying:
                begun = True
                self.record.record_output(self._waited(found[0].choice))
            for delta in found or ():
                if isinstance(delta, End):
                    self.record.ended(delta.reason)
            yield found

    def _waited(self, choice: int) -> float | None:
        """Seconds from the submission to the first step here; None if unknown."""
        first = self.choices[choice].first
        return None if first is None or self.generation.resumed else first.waited

    def usage(self) -> Usage:
        """The token counts so far."""
        firsts = self.choices[:: self.per_prompt]
        return Usage(
            self.prompt_tokens,
            sum(self.completion_tokens()),
            cached=sum(choice.cached_tokens for choice in firsts),
            reasoning=sum(choice.reasoning_tokens for choice in self.choices),
            written=sum(choice.written_tokens for choice in firsts),
            resources=self.generation.resources,
            shown=self.shows_resources,
        )

    def completion_tokens(self) -> list[int]:
        """The tokens of each choice."""
        return [choice.tokens for choice in self.choices]


@contextmanager
def accounted(
    request: ApiRequest, record: CallRecord, completion_tokens: Callable[[], list[int]]
) -> Iterator[None]:
    """Closes a call's record at the end of the block, with the error that ended the call early, if any."""
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        request.end_early(error)
        raise
    finally:
        record.close(completion_tokens(), request.ending)
        trace_end(request, record, failure)


async def answer(
    request: ApiRequest,
    submitted: SubmittedCall,
    *,
    stream: bool,
    headers: Mapping[str, str] | None = None,
    keep_alive: bytes = KEEP_ALIVE,
) -> HTTPResponse | None:
    """Answers the call, and always aborts sequences that still run.

    Args:
      headers: in addition to the usual ones. keep_alive: what a silent stream sends.
    """
    with (
        charged(submitted.charge, submitted.usage, submitted.record),
        accounted(request, submitted.record, submitted.completion_tokens),
    ):
        try:
            if stream:
                await _stream(request, submitted, headers or {}, keep_alive)
                return None
            body = await _fold(request, submitted)
            headers = {**(headers or {}), **cache_header(request, submitted.choices)}
            return HTTPResponse(body, headers=headers, content_type="application/json")
        finally:
            submitted.generation.abort()
            trace_usage(request, submitted.usage())


async def _fold(request: ApiRequest, submitted: SubmittedCall) -> bytes:
    """The JSON of the whole reply, folded from the stream; a long one is encoded off the event loop."""
    async for found in submitted.deltas():
        for delta in found or ():
            submitted.reply.fold(delta)
    usage = submitted.usage()
    size = _JSON_OF_TOKEN * usage.completion
    return await request.off_loop.run(size, lambda: to_json_by_items(submitted.reply.whole(usage)))


async def _stream(
    request: ApiRequest, submitted: SubmittedCall, headers: Mapping[str, str], keep_alive: bytes
) -> None:
    """Sends the stream until its end, or until an error ends it early."""
    deltas = submitted.deltas()
    first = await _begin(deltas) if explains(request) else []
    headers = {**_STREAM_HEADERS, **headers, **cache_header(request, submitted.choices)}
    response = HTTPResponse(headers=headers, content_type="text/event-stream; charset=utf-8")
    await request.respond(response)
    await response.send(b"")
    reply, usage, groups = submitted.reply, submitted.usage, StreamGroups(request, submitted.generation)
    try:
        for group in groups.opening(reply.opening()):
            await response.send(group)
        async for found in _joined(first, deltas):
            events = (event for delta in found or () for event in reply.events(delta, usage))
            ended = [delta.choice for delta in found or () if isinstance(delta, End)]
            for group in groups.of(events if found else [keep_alive], ended):
                await response.send(group)
        last = list(reply.closing(usage()))
    except Exception as error:
        # The status has been sent already: send an error event in the stream, and close the connection.
        request.end_early(error)
        request.close_afterwards()
        last = list(reply.failure(as_api_error(error)))
    for event in last:
        await response.send(event)
    await response.send(b"", end_stream=True)


async def _begin(deltas: AsyncIterator[list[Delta] | None]) -> list[list[Delta]]:
    """The first deltas, however long they take."""
    async for found in deltas:
        if found is not None:
            return [found]
    return []


async def _joined(
    first: list[list[Delta]], rest: AsyncIterator[list[Delta] | None]
) -> AsyncIterator[list[Delta] | None]:
    for found in first:
        yield found
    async for found in rest:
        yield found
