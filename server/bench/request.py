"""Sends one request and measures its answer; what goes wrong is a failure in the record, not an exception."""

import asyncio
import time

import msgspec

from .events import DONE, EventReader, read_chunk
from .http_client import Answer, AnswerBroken, ConnectionFailed, HttpClient
from .record import Failure, Record

LONGEST_SECONDS = 6 * 3600.0
"""A request that takes longer has failed; `vllm bench serve` waits as long."""
_SHOWN = 300
"""Most characters of an unexpected answer in an error."""


async def measure(
    client: HttpClient, path: str, body: bytes, record: Record, longest: float = LONGEST_SECONDS
) -> Record:
    """Sends a streamed completion, now, and fills `record`, which is returned."""
    record.sent = time.perf_counter()
    try:
        async with asyncio.timeout(longest), client.ask(path, body) as answer:
            await _read(answer, record)
    except ConnectionFailed as error:
        record.failure = Failure("no connection", str(error))
    except AnswerBroken as error:
        record.failure = record.failure or Failure("broken answer", str(error))
    except TimeoutError:
        record.failure = Failure("timeout", f"no end within {longest:g} s")
    return record


async def _read(answer: Answer, record: Record) -> None:
    if answer.status != 200:
        record.failure = Failure(f"status {answer.status}", refusal(await answer.body()))
        return
    reader, done, start = EventReader(), False, b""
    async for piece in answer.pieces():
        now = time.perf_counter()
        start = start or piece[:_SHOWN]
        for event in reader.feed(piece):
            done = done or event == DONE
            if event != DONE:
                _take(event, record, now)
    if not record.failure and not (record.ended and (done or record.finished)):
        record.failure = _unfinished(record, start)


def _take(event: bytes, record: Record, now: float) -> None:
    try:
        record.take(read_chunk(event), now)
    except msgspec.MsgspecError as error:
        record.failure = record.failure or Failure("unreadable event", f"{error}: {_shown(event)}")


def _unfinished(record: Record, start: bytes) -> Failure:
    if not record.ended:
        return Failure("no chunks", f"expected server-sent events with choices, found {_shown(start)!r}")
    return Failure("broken answer", "the stream ended without a finish_reason and without [DONE]")


def refusal(body: bytes) -> str:
    """The message of an error's body, in OpenAI's form or as it is."""
    try:
        found = msgspec.json.decode(body)
        error = found.get("error", found)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (msgspec.MsgspecError, AttributeError):
        return _shown(body) or "no reason given"


def _shown(data: bytes) -> str:
    return data[:_SHOWN].decode(errors="replace").strip()
