"""The figures of the loads, with a known clock and server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from benchmarks import load
from benchmarks.load import arrivals, closed, gaps_during, send, summarise
from distaff.checkpoints import load_tokenizer, resolve
from distaff.server.bench.http_client import HttpClient
from distaff.server.bench.record import Record


def test_gaps_that_reach_over_the_ends_of_the_window_count():
    """A stall that began before the prompt arrived, or ends after its answer, still counts."""
    times = [0.0, 1.0, 5.0, 5.5, 9.0, 9.1]
    assert gaps_during(times, 4.0, 6.0) == [4.0, 0.5, 3.5]
    assert gaps_during(times, 1.2, 1.3) == [4.0]
    assert gaps_during([3.0], 0.0, 9.0) == []


def served(url: str) -> SimpleNamespace:
    return SimpleNamespace(url=url, contender=SimpleNamespace(model="tgi", extra={}))


def replied(first: float, total: float, prompt_tokens: int, tokens: int) -> Record:
    return Record(0.0, 0.0, times=[first], ended=total, prompt_tokens=prompt_tokens, output_tokens=tokens)


def test_a_load_sums_up_its_replies():
    """Tokens over the whole time; the time per token counts tokens after the first one."""
    replies = [replied(first=1.0, total=3.0, prompt_tokens=10, tokens=5)] * 3
    result = summarise(2, [*replies, replied(first=2.0, total=2.0, prompt_tokens=30, tokens=1)], 4.0)
    assert (result.streams, result.requests, result.tokens_per_second) == (2, 4, 4.0)
    assert (result.ttft_p50, result.ttft_p95, result.prompt_tokens) == (1.0, 2.0, 15.0)
    assert (result.time_per_token_p50, result.time_per_token_p95) == (0.5, 0.5)


@contextlib.asynccontextmanager
async def serving(status: int, *chunks: dict) -> AsyncIterator[str]:
    """A server with one answer; yields its URL."""
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} Such\r\nConnection: close\r\n\r\n{events}".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


PIECES = [{"choices": [{"delta": {"content": text}}]} for text in ("The capital", " of France")]


async def test_tokens_are_the_servers_count_or_ours():
    """A piece of text may hold several tokens."""
    async with serving(200, *PIECES, {"choices": [], "usage": {"completion_tokens": 7}}) as url:
        counted = await send(HttpClient(url), {})
    assert counted.outputs == 7 and "".join(counted.text) == "The capital of France"
    async with serving(200, *PIECES) as url:
        assert (await send(HttpClient(url), {})).outputs == 4


@pytest.mark.parametrize("measured", [lambda s: closed(s, 2, 2, 8), lambda s: arrivals(s, 500.0, 0.01, 8)])
async def test_a_load_of_a_server(measured):
    """All requests are sent, and the figures are of all of them."""
    chunk = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    async with serving(200, *PIECES, chunk) as url:
        result = await asyncio.to_thread(measured, served(url))
    assert (result.requests, result.prompt_tokens) in ((4, 5), (5, 5))
    assert result.tokens_per_second > 0


async def test_a_refusal_fails_the_load():
    """With the server's message, and as the error that `compare` expects."""
    async with serving(429, {"message": "too many"}) as url:
        with pytest.raises(RuntimeError, match=r"429.*too many"):
            await send(HttpClient(url), {})
        with pytest.raises(RuntimeError, match=r"429.*too many"):
            await asyncio.to_thread(closed, served(url), 2, 1, 8)


@pytest.mark.parametrize("tokens", [1500, 4000])
def test_a_long_question_is_as_long_as_it_says(tokens):
    """Counted with the model's tokenizer and template."""
    tokenizer = load_tokenizer(resolve(None))
    prompt = tokenizer.encode_chat(load._begun(load.long_question(3, tokens)))
    assert abs(len(prompt) - tokens) <= 20
