"""Loads of chat completions for a running server, and their figures.

`closed` keeps N streams busy: each sends its next request when its last one has ended. `arrivals` sends
requests at random times, regardless of the answers. `multi_turn` continues a conversation with each reply.
Prompts share a system message and differ from the first word after it, also between runs, so that no answer
and no whole prompt can come from a cache. The client is that of `distaff bench`.
"""

import asyncio
import functools
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from distaff.checkpoints import ChatTokenizer, load_tokenizer, resolve
from distaff.server.bench.http_client import HttpClient
from distaff.server.bench.load import Outcome, Pace, apply
from distaff.server.bench.record import Record
from distaff.server.bench.request import measure

from .server import Served

SYSTEM = (
    "You are a helpful assistant. Answer in plain words, say what you are unsure of, keep to the question."
)
_TOPICS = (
    "rivers", "bridges", "bread", "winter", "trains", "violins", "whales", "glass", "moss", "harbours",
    "clocks", "tea", "maps", "volcanoes", "looms", "lighthouses",
)  # fmt: skip
_CLOSING = "Which of them do you like best, and why?"
_TEMPLATE_TOKENS = 16
"""About the number of tokens that the chat template adds to a system and a user message."""
_PATIENCE = 600.0
"""Seconds after which a request has failed."""
Conversation = list[dict[str, str]]
_numbers = itertools.count(random.randrange(10**6))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The figures of a load of `streams` concurrent requests; times in seconds."""

    streams: int
    requests: int
    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    time_per_token_p50: float
    time_per_token_p95: float
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


def long_question(number: int, tokens: int = 1500) -> str:
    """A user message that makes a prompt of about `tokens` tokens, with different random words for every
    number."""
    generator, words = random.Random(number), [f"Request {number}. Here is a list of words:"]
    left = tokens - _tokens_of(" ".join([SYSTEM, words[0], _CLOSING])) - _TEMPLATE_TOKENS
    while left > 0:
        words.append(generator.choice(_TOPICS))
        left -= _tokens_of(f" {words[-1]}")
    return " ".join([*words, _CLOSING])


@functools.cache
def _tokenizer() -> ChatTokenizer:
    return load_tokenizer(resolve(None))


@functools.cache
def _tokens_of(text: str) -> int:
    return len(_tokenizer().encode(text))


def chat(number: int) -> Conversation:
    """A conversation that begins with a question."""
    return _begun(question(number))


def long_chat(number: int) -> Conversation:
    """The same with a long question."""
    return _begun(long_question(number))


def edit(number: int) -> Conversation:
    """A small change to a program in the conversation: the case for prompt lookup."""
    one, other = _TOPICS[number % 16], _TOPICS[(number + 5) % 16]
    return [
        *_begun(f"Request {number}: write a class that counts {one} and {other}."),
        {"role": "assistant", "content": _PROGRAM.format(name=one.title(), one=one, other=other, n=number)},
        {
            "role": "user",
            "content": "Rename the attribute `limit` to `most` and give me the whole class again.",
        },
    ]


_PROGRAM = """```python
class {name}Counter:
    \"\"\"Counts {one} and {other} at station {n}.\"\"\"

    def __init__(self, {one}, {other}, limit={n}):
        self.{one} = {one}
        self.{other} = {other}
        self.limit = limit
        self.seen = []

    def add(self, name, count):
        if count > self.limit:
            raise ValueError(f"too many: {{count}}")
        self.seen.append((name, count))
        return len(self.seen)

    def total(self):
        return sum(count for _, count in self.seen)
```"""


def _begun(text: str) -> Conversation:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def body(served: Served, conversation: Conversation, max_tokens: int) -> dict:
    """A streamed, greedy request of exactly `max_tokens` tokens, if the server supports that."""
    return {
        "model": served.contender.model,
        "messages": conversation,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **served.contender.extra,
    }


def closed(served: Served, streams: int, per_stream: int, max_tokens: int, ask=chat) -> LoadResult:
    """`streams` requests at a time, `per_stream` times as many in all."""
    return _measured(served, Pace(concurrency=streams), streams * per_stream, max_tokens, ask)


def arrivals(served: Served, rate: float, seconds: float, max_tokens: int) -> LoadResult:
    """Requests at random times (Poisson), `rate` per second on average."""
    return _measured(served, Pace(rate=rate), max(1, round(rate * seconds)), max_tokens, chat)


def multi_turn(served: Served, turns: int, max_tokens: int) -> list[float]:
    """Seconds to the first token of each turn of one conversation, which grows with every turn."""

    async def run() -> list[float]:
        messages, firsts = chat(next(_numbers)), []
        with closing(HttpClient(served.url)) as client:
            for _ in range(turns):
                reply = await send(client, body(served, messages, max_tokens))
                firsts.append(reply.ttft)
                messages += [{"role": "assistant", "content": "".join(reply.text)}]
                messages += [{"role": "user", "content": question(next(_numbers))}]
        return firsts

    return asyncio.run(run())


def gaps_beside(served: Served, streams: int, intruder: str, max_tokens: int) -> tuple[float, float]:
    """The 99th percentile of the seconds between tokens, of streams alone, and with a prompt that arrives
    meanwhile."""

    async def run(*, beside: bool) -> float:
        with closing(HttpClient(served.url)) as client:
            records = [Record(due=0.0) for _ in range(streams)]
            tasks = [
                asyncio.create_task(send(client, body(served, chat(next(_numbers)), max_tokens), record))
                for record in records
            ]
            while any(
                len(record.times) < 8 and not task.done() for record, task in zip(records, tasks, strict=True)
            ):
                await asyncio.sleep(0.01)  # all must decode before the gaps are measured
            begun = time.perf_counter()
            if beside:
                await send(client, body(served, _begun(intruder), 1))
            ended = time.perf_counter() if beside else float("inf")
            await asyncio.gather(*tasks)
        gaps = sorted(gap for record in records for gap in gaps_during(record.times, begun, ended))
        if not gaps:
            raise RuntimeError("no stream continued during the long prompt")
        return gaps[round(0.99 * (len(gaps) - 1))]

    return asyncio.run(run(beside=False)), asyncio.run(run(beside=True))


def gaps_during(times: Sequence[float], begun: float, ended: float) -> list[float]:
    """Gaps between times that overlap a window, also those that extend beyond it."""
    return [b - a for a, b in itertools.pairwise(times) if b > begun and a < ended]


def _measured(served: Served, pace: Pace, count: int, max_tokens: int, ask) -> LoadResult:
    async def run() -> Outcome:
        requests = [body(served, ask(next(_numbers)), max_tokens) for _ in range(count)]
        with closing(HttpClient(served.url)) as client:
            return await apply(
                lambda request, due: _send(client, request, Record(due)),
                requests,
                pace,
                np.random.default_rng(),
            )

    outcome = asyncio.run(run())
    if outcome.interrupted:
        raise KeyboardInterrupt
    return summarise(pace.concurrency or 0, [_checked(each) for each in outcome.records], outcome.duration)


async def send(client: HttpClient, request: dict, record: Record | None = None) -> Record:
    """Sends a request and reads the answer to its end; counts its tokens if the server does not.

    Raises:
      RuntimeError: it failed.
    """
    return _checked(await _send(client, request, record or Record(due=0.0)))


async def _send(client: HttpClient, request: dict, record: Record) -> Record:
    return await measure(client, "/v1/chat/completions", json.dumps(request).encode(), record, _PATIENCE)


def _checked(record: Record) -> Record:
    if record.failure:
        raise RuntimeError(f"{record.failure.kind}: {record.failure.message}")
    record.output_tokens = record.output_tokens or len(_tokenizer().encode("".join(record.text)))
    return record


def summarise(streams: int, replies: Sequence[Record], seconds: float) -> LoadResult:
    """The figures of some replies that together took `seconds`."""
    firsts = sorted(reply.ttft for reply in replies)
    paces = sorted(reply.tpot or 0.0 for reply in replies)
    return LoadResult(
        streams=streams,
        requests=len(replies),
        tokens_per_second=sum(reply.outputs for reply in replies) / seconds,
        ttft_p50=statistics.median(firsts),
        ttft_p95=firsts[round(0.95 * (len(firsts) - 1))],
        time_per_token_p50=statistics.median(paces),
        time_per_token_p95=paces[round(0.95 * (len(paces) - 1))],
        prompt_tokens=statistics.mean(reply.inputs for reply in replies),
    )
