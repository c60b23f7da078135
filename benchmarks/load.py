"""A closed-loop load of chat completions against a running server.

Each of N streams sends its next request when its last one has ended. Prompts share a system message and
differ in the rest, so no answer can come from a cache of whole prompts.
"""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass

import httpx

SYSTEM = (
    "You are a helpful assistant. Answer in plain words, say what you are unsure of, keep to the question."
)
_TOPICS = (
    "rivers", "bridges", "bread", "winter", "trains", "violins", "whales", "glass", "moss", "harbours",
    "clocks", "tea", "maps", "volcanoes", "looms", "lighthouses",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's figures: seconds to the first token and to the end, and token counts."""

    first: float
    total: float
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load of `streams` concurrent requests gave; times in seconds."""

    streams: int
    requests: int
    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    time_per_token_p50: float
    prompt_tokens: float


def question(number: int) -> str:
    """A user message of about eighty tokens, different for every number."""
    topic, other = _TOPICS[number % 16], _TOPICS[number * 7 % 16 - 1]
    return (
        f"Request {number}: tell me something about {topic} that few people know, and why it matters to "
        f"those who care about {other}. Say first what everybody believes, then what is true, then how one "
        "could find that out without any instruments at home on a rainy afternoon. Keep it short, please, "
        "and end with a question of your own that I could ask a friend about it."
    )


def chat(number: int, max_tokens: int) -> dict:
    """The body of a streamed, greedy request of exactly `max_tokens` tokens."""
    return {
        "model": "tgi",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question(number)},
        ],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def run(url: str, streams: int, per_stream: int, max_tokens: int) -> LoadResult:
    """Runs the load and summarises it."""
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def worker(index: int) -> list[Reply]:
            numbers = range(index * per_stream, (index + 1) * per_stream)
            return [await _ask(client, chat(1000 * streams + n, max_tokens)) for n in numbers]

        begun = time.perf_counter()
        replies = [r for replies in await asyncio.gather(*map(worker, range(streams))) for r in replies]
        seconds = time.perf_counter() - begun
    return _summarise(streams, replies, seconds)


async def _ask(client: httpx.AsyncClient, body: dict) -> Reply:
    begun = time.perf_counter()
    first, usage = 0.0, None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            if not first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begun
    assert usage is not None, "the stream ended without usage"
    return Reply(first, time.perf_counter() - begun, usage["prompt_tokens"], usage["completion_tokens"])


def _summarise(streams: int, replies: list[Reply], seconds: float) -> LoadResult:
    firsts = sorted(reply.first for reply in replies)
    paces = [(reply.total - reply.first) / max(1, reply.tokens - 1) for reply in replies]
    return LoadResult(
        streams=streams,
        requests=len(replies),
        tokens_per_second=sum(reply.tokens for reply in replies) / seconds,
        ttft_p50=statistics.median(firsts),
        ttft_p95=firsts[int(0.95 * (len(firsts) - 1))],
        time_per_token_p50=statistics.median(paces),
        prompt_tokens=statistics.mean(reply.prompt_tokens for reply in replies),
    )
