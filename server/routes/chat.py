"""POST /v1/chat/completions: the way of a request, from its body to the last byte of its answer.

Each station is a module of its own; this one only walks past them, and sees to it that whatever ends the
walk (an answer, a disconnect, a timeout, a defect) also ends the sequences in the engine.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse

from ..chat import ChoiceText, Delta, End, Piece, Start, deltas
from ..context import ApiRequest, AppContext
from ..errors import as_api_error
from ..generation import Generation
from ..metrics import CallRecord
from ..prompt import encode, sequences
from ..protocol.answers import Answer, FoldedChoice, usage
from ..protocol.body import parse_object
from ..protocol.chat import ChatCall, parse_chat
from ..protocol.encode import DONE, KEEP_ALIVE, to_event, to_json
from ..settings import ServerSettings

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""The longest silence in a stream: load balancers give up on a connection after 60 s without a byte."""

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_MOST_NAMES_LOGGED = 256

blueprint = Blueprint("chat")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One admitted call: what was asked, what is heard, and the shape of the answer."""

    call: ChatCall
    prompt_tokens: int
    generation: Generation
    choices: Sequence[ChoiceText]
    answer: Answer
    record: CallRecord

    async def deltas(self) -> AsyncIterator[Delta | None]:
        """What the choices say, kept account of."""
        async for delta in deltas(self.generation, self.choices, KEEP_ALIVE_SECONDS):
            if isinstance(delta, Start):
                self.record.heard()
            elif isinstance(delta, End):
                self.record.ended(delta.reason)
            yield delta

    def usage(self) -> dict[str, Any]:
        """The tokens so far."""
        return usage(self.prompt_tokens, sum(self.completion_tokens()), self.choices[0].cached_tokens)

    def completion_tokens(self) -> list[int]:
        return [choice.tokens for choice in self.choices]


@blueprint.post("/v1/chat/completions")
async def create_chat_completion(request: ApiRequest) -> HTTPResponse | None:
    """Answers in one piece or as a stream."""
    request.watch_for_disconnect()
    context = request.app.ctx
    content_type = request.headers.getone("content-type", None)
    call: ChatCall = await context.off_loop.run(
        len(request.body), _parse, request.body, content_type, context.settings
    )
    _note_unknown(context, call.unknown)
    context.check_model(call.model)
    info, text = context.engine_info(), context.served.ready()
    prompt = await encode(text, call, info.context, context.off_loop)
    answer = Answer(
        model=context.settings.model,
        fingerprint="fp_" + info.fingerprint,
        logprobs=call.logprobs is not None,
        include_usage=call.include_usage,
    )
    requests = sequences(answer.id, prompt, call, text, context.served.defaults)
    choices = [ChoiceText(text, prompt, call.stop, logprobs=answer.logprobs) for _ in requests]
    generation = Generation(context.engine, requests)
    record = CallRecord(
        context.metrics,
        id=_log_id(request),
        model=answer.model,
        started=request.started,
        prompt_tokens=len(prompt),
    )
    return await _answer(request, Exchange(call, len(prompt), generation, choices, answer, record))


def _parse(body: bytes, content_type: str | None, settings: ServerSettings) -> ChatCall:
    return parse_chat(
        parse_object(body, content_type), most_choices=settings.most_choices, strict=settings.strict
    )


def _note_unknown(context: AppContext, names: tuple[str, ...]) -> None:
    """Counts unknown parameters, and logs each name the first time it is met."""
    context.metrics.unknown.inc(len(names))
    for name in names:
        short = name[:64]
        if short not in context.seen_unknown and len(context.seen_unknown) < _MOST_NAMES_LOGGED:
            context.seen_unknown.add(short)
            logger.warning("ignoring the unknown request parameter %r", short)


def _log_id(request: ApiRequest) -> str:
    """Our id of the request, and the client's own where it is harmless."""
    theirs = request.headers.getone("x-client-request-id", "")
    if 0 < len(theirs) <= 64 and theirs.isascii() and theirs.replace("-", "").replace("_", "").isalnum():
        return f"{request.reference} client={theirs}"
    return request.reference


async def _answer(request: ApiRequest, exchange: Exchange) -> HTTPResponse | None:
    """Answers, and leaves nothing running, however it ends."""
    ended_by: str | None = "error"
    try:
        if exchange.call.stream:
            ended_by = await _stream(request, exchange)
            return None
        body = await _fold(exchange)
        ended_by = None
        return HTTPResponse(to_json(body), content_type="application/json")
    except asyncio.CancelledError:
        ended_by = "abort"
        raise
    finally:
        exchange.generation.abort()
        exchange.record.close(exchange.completion_tokens(), cut_short=ended_by)


async def _fold(exchange: Exchange) -> dict[str, Any]:
    """The stream, folded into one object."""
    logprobs = exchange.answer.logprobs
    choices = [FoldedChoice([] if logprobs else None) for _ in exchange.choices]
    async for delta in exchange.deltas():
        match delta:
            case Piece(index, text, entries):
                choices[index].add(text, entries)
            case End(index, reason):
                choices[index].finish = reason
    return exchange.answer.completion(choices, exchange.usage())


async def _stream(request: ApiRequest, exchange: Exchange) -> str | None:
    """Sends the stream; returns why it was cut short, if it was."""
    response = HTTPResponse(headers=_STREAM_HEADERS, content_type="text/event-stream; charset=utf-8")
    await request.respond(response)
    await response.send(b"")
    failure = None
    try:
        async for delta in exchange.deltas():
            await response.send(KEEP_ALIVE if delta is None else to_event(_chunk(exchange, delta)))
        if exchange.call.include_usage:
            await response.send(to_event(exchange.answer.usage_chunk(exchange.usage())))
    except Exception as error:
        # The status is long sent: all that is left is to say so in the stream, and to close.
        failure = "error"
        logger.error("%s failed in mid-stream: %s", request.reference, type(error).__name__)
        request.close_afterwards()
        await response.send(to_event(as_api_error(error).envelope()))
    await response.send(DONE, end_stream=True)
    return failure


def _chunk(exchange: Exchange, delta: Delta) -> dict[str, Any]:
    answer = exchange.answer
    so_far = exchange.usage() if exchange.call.continuous_usage else None
    match delta:
        case Start(index):
            return answer.start_chunk(index, so_far)
        case Piece(index, text, entries):
            return answer.text_chunk(index, text, entries, so_far)
        case End(index, reason):
            return answer.finish_chunk(index, reason, so_far)
