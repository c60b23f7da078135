"""One request: what is measured of its answer, and each way in which it can fail."""

import time

import pytest

from distaff.server.bench.http_client import HttpClient
from distaff.server.bench.record import Record
from distaff.server.bench.request import measure

from .raw_server import CLOSE, HEAD, chunked, raw_server

ROLE = b'{"choices": [{"delta": {"role": "assistant"}, "finish_reason": null}]}'
TEXT = b'{"choices": [{"delta": {"content": "a"}, "finish_reason": null}], "usage": null}'
END = b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
USAGE = (
    b'{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5, '
    b'"prompt_tokens_details": {"cached_tokens": 4}}}'
)
DONE = b"[DONE]"


def refused(status: int, body: bytes) -> bytes:
    """A whole answer in one piece."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def measured(*script: bytes, longest: float = 20.0) -> Record:
    async with raw_server(script) as server:
        record = Record(time.perf_counter(), given=7)
        return await measure(server.client(), "/v1/chat/completions", b"{}", record, longest)


async def test_an_answer_is_measured():
    """The role alone is no token; the end is the last chunk of the choice."""
    found = await measured(chunked(ROLE, TEXT, TEXT, END, USAGE, DONE))
    assert not found.failure
    assert (found.inputs, found.outputs, found.cached_tokens, found.text) == (9, 5, 4, ["a", "a"])
    assert len(found.times) == 2 and len(found.gaps) == 1
    assert found.due <= found.sent <= found.times[0] <= found.times[1] <= found.ended
    assert found.tpot == pytest.approx((found.latency - found.ttft) / 4)


async def test_chunks_count_as_tokens_where_the_server_has_no_usage():
    """And the prompt is as long as the client knows."""
    found = await measured(chunked(TEXT, TEXT, TEXT, DONE))
    assert not found.failure and found.output_tokens is None
    assert (found.inputs, found.outputs) == (7, 3)


async def test_an_answer_without_text_has_its_first_token_at_the_end():
    """Not at zero, which would be the best value."""
    found = await measured(chunked(ROLE, END, DONE))
    assert not found.failure and found.ttft == found.latency > 0
    assert found.outputs == 0 and found.tpot is None


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ([refused(503, b'{"error": {"message": "too busy"}}')], "status 503", "too busy"),
        ([refused(404, b'{"message": "no such model"}')], "status 404", "no such model"),
        ([refused(503, b"")[:-4], CLOSE], "broken answer", "no HTTP/1.1 answer"),
        ([b"HTTP/1.1 502 X\r\n\r\n<html>", CLOSE], "status 502", "<html>"),
        ([refused(429, b"")], "status 429", "no reason given"),
        ([refused(307, b"elsewhere")], "status 307", "elsewhere"),
        ([chunked(TEXT, b'{"error": {"message": "lost"}}', DONE)], "error in the stream", "lost"),
        ([chunked(TEXT, b'{"error": "lost"}')], "error in the stream", "lost"),
        ([chunked(b"{", DONE)], "unreadable event", "{"),
        ([chunked(b'{"choices": 1}', DONE)], "unreadable event", "choices"),
        ([chunked(TEXT)], "broken answer", "without a finish_reason"),
        ([HEAD + b"20\r\ndata: {", CLOSE], "broken answer", "closed the connection"),
        ([CLOSE], "broken answer", "without an answer"),
        ([chunked(DONE)], "no chunks", "DONE"),
        ([refused(200, b'{"choices": []}')], "no chunks", "choices"),
    ],
)
async def test_each_failure_has_its_kind(script: list[bytes], kind: str, message: str):
    """None is an exception, and the message says what was found."""
    found = await measured(*script)
    assert found.failure and found.failure.kind == kind
    assert message in found.failure.message


async def test_silence_is_a_failure():
    """Nothing hangs."""
    found = await measured(HEAD, longest=0.05)
    assert found.failure and found.failure.kind == "timeout"
    assert found.failure.message == "no end within 0.05 s"


async def test_no_server_is_a_failure():
    """With the reason."""
    found = await measure(HttpClient("http://127.0.0.1:9"), "/x", b"", Record(0.0))
    assert found.failure and found.failure.kind == "no connection" and "9" in found.failure.message
