"""One admitted call, whatever protocol it speaks: heard, answered as a stream or in one piece, accounted for.

A `Reply` knows what its protocol's answers look like; this module sees to it that whatever ends a call (an
answer, a disconnect, a timeout, a defect) also ends the sequences in the engine. The one idea: a whole reply
folds the same deltas that a stream sends.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sanic import HTTPResponse

from ..encode import KEEP_ALIVE, to_json_by_items
from ..errors import ApiError, as_api_error
from ..metrics import CallRecord
from ..protocol.usage import Usage
from ..text.deltas import ChoiceText, Delta, End, Start, deltas
from ..text.generation import Generation
from .context import ApiRequest

KEEP_ALIVE_SECONDS = 15.0
"""The longest silence in a stream: load balancers give up on a connection after 60 s without a byte."""

_JSON_OF_TOKEN = 16
"""Characters of an answer for each token of it; some have many more, with log-probabilities."""
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Reply(Protocol):
    """The shapes of one answer in one protocol."""

    def opening(self) -> Iterable[bytes]:
        """What a stream sends before the model has said anything."""
        ...

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterable[bytes]:
        """What a stream sends for a delta; `usage` counts the tokens so far, where they are told."""
        ...

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """What it sends when all choices have ended."""
        ...

    def failure(self, error: ApiError) -> Iterable[bytes]:
        """What it sends when it breaks off."""
        ...

    def fold(self, delta: Delta) -> None:
        """Takes a delta into the reply in one piece."""
        ...

    def whole(self, usage: Usage) -> Any:
        """That reply, as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Exchange:
    """One admitted call: what is heard, and who shapes the answer.

    Attributes:
      prompt_tokens: each prompt counted once. per_prompt: how many choices each prompt has.
    """

    prompt_tokens: int
    per_prompt: int
    generation: Generation
    choices: Sequence[ChoiceText]
    reply: Reply
    record: CallRecord

    async def deltas(self) -> AsyncIterator[Delta | None]:
        """What the choices say, kept account of."""
        async for delta in deltas(self.generation, self.choices, KEEP_ALIVE_SECONDS):
            if isinstance(delta, Start):
                self.record.heard()
            elif isinstance(delta, End):
                self.record.ended(delta.reason)
            yield delta

    def usage(self) -> Usage:
        """The tokens so far."""
        cached = sum(choice.cached_tokens for choice in self.choices[:: self.per_prompt])
        return Usage(self.prompt_tokens, sum(self.completion_tokens()), cached)

    def completion_tokens(self) -> list[int]:
        """Of each choice."""
        return [choice.tokens for choice in self.choices]


@contextmanager
def accounted(
    request: ApiRequest, record: CallRecord, completion_tokens: Callable[[], list[int]]
) -> Iterator[None]:
    """Closes a call's account at the end of the block, with what ended the call early if anything did."""
    try:
        yield
    except BaseException as error:
        request.end_early(error)
        raise
    finally:
        record.close(completion_tokens(), request.ending)


async def answer(
    request: ApiRequest, exchange: Exchange, *, stream: bool, headers: Mapping[str, str] | None = None
) -> HTTPResponse | None:
    """Answers, with further headers if there are any, and leaves nothing running, however it ends."""
    with accounted(request, exchange.record, exchange.completion_tokens):
        try:
            if stream:
                await _stream(request, exchange, headers or {})
                return None
            body = await _fold(request, exchange)
            return HTTPResponse(body, headers=dict(headers or {}), content_type="application/json")
        finally:
            exchange.generation.abort()


async def _fold(request: ApiRequest, exchange: Exchange) -> bytes:
    """The stream, folded into one object: its JSON, made off the event loop where it is long."""
    async for delta in exchange.deltas():
        if delta is not None:
            exchange.reply.fold(delta)
    usage = exchange.usage()
    size = _JSON_OF_TOKEN * usage.completion
    return await request.off_loop.run(size, lambda: to_json_by_items(exchange.reply.whole(usage)))


async def _stream(request: ApiRequest, exchange: Exchange, headers: Mapping[str, str]) -> None:
    """Sends the stream, to its end or to the error that ends it early."""
    headers = {**_STREAM_HEADERS, **headers}
    response = HTTPResponse(headers=headers, content_type="text/event-stream; charset=utf-8")
    await request.respond(response)
    await response.send(b"")
    reply = exchange.reply
    try:
        for event in reply.opening():
            await response.send(event)
        async for delta in exchange.deltas():
            for event in [KEEP_ALIVE] if delta is None else reply.events(delta, exchange.usage):
                await response.send(event)
        last = list(reply.closing(exchange.usage()))
    except Exception as error:
        # The status is long sent: all that is left is to say so in the stream, and to close.
        request.end_early(error)
        request.close_afterwards()
        last = list(reply.failure(as_api_error(error)))
    for event in last:
        await response.send(event)
    await response.send(b"", end_stream=True)
