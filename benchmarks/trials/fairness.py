"""One key with very many requests beside one with few: `python -m benchmarks.trials.fairness`.

Key B sends a request once a second: first alone, then while key A keeps 500 streams open. B's time to the
first token must be at most 1.5 times that alone, B must never be refused, and A uses the remaining capacity.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from ..load import chat
from ..server import Contender
from .replies import first_token
from .sse import Answer, Call, ask
from .trial import Table, contender, parser, percentile, run, scrape, serving, spread

BOUND = 1.5
KEY_A, KEY_B = "key-of-the-many-streams", "key-of-the-one-request"
_RUN_IN_SECONDS = 5.0
"""Time for A's streams to fill all slots before anything is measured."""
_LONGEST_RETRY = 30.0
_numbers = itertools.count(random.randrange(10**6))


@contextlib.asynccontextmanager
async def repeated(stream: Callable[[], Awaitable[None]], count: int) -> AsyncIterator[None]:
    """Keeps `count` calls of `stream` running, each started again when it ends, while the block runs."""

    async def repeat() -> None:
        while True:
            await stream()

    tasks = [asyncio.create_task(repeat()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class Many:
    """Key A's requests; counts answers and refusals."""

    url: str
    tokens: int
    served: int = 0
    refused: int = 0

    async def stream(self) -> None:
        """One request; after a refusal, the same again after the wait that `Retry-After` requests."""
        asked = body(self.tokens)
        while (answer := await ask(self.url, asked, KEY_A)).status != 200:
            self.refused += 1
            await asyncio.sleep(min(answer.retry_after or 1.0, _LONGEST_RETRY))  # as clients do
        self.served += 1


def body(tokens: int) -> Call:
    """A greedy chat of exactly `tokens` tokens, different from all previous ones."""
    asked = {"model": "tgi", "messages": chat(next(_numbers)), "max_tokens": tokens, "temperature": 0}
    return Call("/v1/chat/completions", asked | {"ignore_eos": True, "stream": True})


async def once_a_second(url: str, seconds: float, tokens: int) -> list[Answer]:
    """Key B: a request every second, independent of the last one's state."""
    tasks = []
    for _ in range(max(1, round(seconds))):
        tasks.append(asyncio.create_task(ask(url, body(tokens), KEY_B)))
        await asyncio.sleep(1)  # the load itself
    return await asyncio.gather(*tasks)


async def pace(url: str, seconds: float, key: str | None = None) -> float:
    """Tokens per second that the engines generate meanwhile."""
    before, begun = (await scrape(url, key)).generated, time.perf_counter()
    await asyncio.sleep(seconds)  # the window that is measured
    return ((await scrape(url, key)).generated - before) / (time.perf_counter() - begun)


async def trial(url: str, name: str, streams: int, seconds: float, tokens: tuple[int, int]) -> Table:
    """B alone, A alone, then both."""
    of_a, of_b = tokens
    alone = await once_a_second(url, seconds, of_b)
    many = Many(url, of_a)
    async with repeated(many.stream, streams):
        await asyncio.sleep(_RUN_IN_SECONDS)  # until all slots are full
        pace_alone = await pace(url, min(seconds, 30), KEY_A)
        both = asyncio.create_task(pace(url, seconds, KEY_A))
        beside = await once_a_second(url, seconds, of_b)
        pace_beside = await both
    table = Table(name)
    _rows_of_b(table, alone, beside)
    table.note("tokens/s of all, A alone; beside B", f"{pace_alone:.0f}; {pace_beside:.0f}")
    table.note("A's answers; refusals", f"{many.served}; {many.refused}")
    return table


def _rows_of_b(table: Table, alone: Sequence[Answer], beside: Sequence[Answer]) -> None:
    before, after = ([first_token(each) for each in answers] for answers in (alone, beside))
    waits = [[value for value in values if value is not None] for values in (before, after)]
    table.note("B's time to first token, alone", spread(waits[0], "ms"))
    table.note("B's time to first token, beside A", spread(waits[1], "ms"))
    ratio = percentile(waits[1], 0.99) / percentile(waits[0], 0.99)
    table.bound("B's p99 beside A to alone", f"{ratio:.2f}", f"at most {BOUND:g}", ratio <= BOUND)
    refused = sum(answer.status != 200 for answer in beside)
    table.bound("B refused", f"{refused} of {len(beside)}", "never", refused == 0)
    lost = sum(value is None for value in after) - refused
    table.bound("B's streams without a token", str(lost), "none", lost == 0)


def _with_keys(contended: Contender) -> Contender:
    return replace(contended, environment=lambda: {"DISTAFF_API_KEYS": f"{KEY_A},{KEY_B}"})


def main() -> None:
    """Measures and prints."""
    made = parser(__doc__)
    made.add_argument("--streams", type=int, default=500, help="of key A")
    made.add_argument("--seconds", type=float, default=120.0, help="for each of alone and beside")
    made.add_argument("--tokens", type=int, nargs=2, default=(400, 4), help="of an answer to A and to B")
    options, rest = made.parse_known_args()
    name = f"fairness, {options.model}, {options.replicas} replicas"
    with serving(options, _with_keys(contender(options, rest)), KEY_A) as served:
        tokens = tuple(options.tokens)
        run(lambda: trial(served.url, name, options.streams, options.seconds, tokens))


if __name__ == "__main__":
    main()
