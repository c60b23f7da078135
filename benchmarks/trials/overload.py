"""Ten times the server's capacity, regardless of its answers: `python -m benchmarks.trials.overload`.

First a closed loop finds the capacity; then requests arrive at random (Poisson) at ten times that rate; then
the closed loop runs once more, because the machine may have become faster or slower meanwhile. Measures how
quickly the server refuses, how long admitted requests wait, how much throughput remains, and how good
`Retry-After` is: some refused clients wait that long and retry until they are admitted, others retry twice a
second, which shows when there really was room. The answers' length is chosen so that the server completes
about two per second, so that the load costs the client and the web process little.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .fairness import body, pace, repeated
from .replies import first_token
from .retries import Retries
from .sse import Answer, ask
from .trial import Table, parser, percentile, run, serving, spread
from .trial import contender as contender_of

TIMES = 10.0
REFUSAL_SECONDS = 0.05
LEAST_THROUGHPUT = 0.95
_RATE = 2.0
"""Answers per second that the server should be able to complete."""
_SHORTEST, _LONGEST = 32, 4096
_PACE_TOKENS = 128
_CLOSED_SECONDS = (20.0, 50.0)
"""The durations of the closed loop that determines the answers' length, and of the one for comparison."""
_DELAY_SECONDS = 0.02
_SETTLE_SECONDS = 180.0
"""The maximum wait after the load."""


@dataclass(slots=True)
class Overload:
    """The requests of an open loop, and retries of refused ones.

    Attributes:
      answers: in the order in which they ended. pace: tokens per second while it ran.
      delays: seconds by which this client itself is late, which limits the precision of latencies.
    """

    url: str
    tokens: int
    rate: float
    seconds: float
    answers: list[Answer] = field(default_factory=list)
    pace: float = 0.0
    delays: list[float] = field(default_factory=list)

    async def load(self, retries: Retries) -> None:
        """Sends requests until the time is over, then waits until all have ended."""
        async with asyncio.TaskGroup() as group:
            measured = group.create_task(pace_of(self.url, self.seconds))
            watched = group.create_task(self._watch())
            left = self.seconds
            while left > 0:
                group.create_task(self._send(retries))
                pause = random.expovariate(self.rate)
                left -= pause
                await asyncio.sleep(pause)  # the load itself
            watched.cancel()
        self.pace = measured.result()

    async def _watch(self) -> None:
        while True:
            due = time.perf_counter() + _DELAY_SECONDS
            await asyncio.sleep(_DELAY_SECONDS)  # what is measured: how late the client itself is
            self.delays.append(time.perf_counter() - due)

    async def _send(self, retries: Retries) -> None:
        call = body(self.tokens)
        answer = await ask(self.url, call)
        self.answers.append(answer)
        if answer.status != 200 and answer.retry_after is not None:
            retries.refused(answer, call)


async def pace_of(url: str, seconds: float, skipped: float = 0.1) -> float:
    """Tokens per second that the engines generate in a period, without its beginning."""
    await asyncio.sleep(skipped * seconds)  # until the load is steady
    return await pace(url, (1 - skipped) * seconds)


async def closed(url: str, streams: int, tokens: int, seconds: float) -> float:
    """Tokens per second of `streams` streams; each starts again when it ends.

    Their first answers have different lengths, so that the streams are at different positions from then on,
    like those of independent clients: steps are faster if all contexts are short at the same time.
    """
    firsts = itertools.count(1)

    async def stream() -> None:
        await ask(url, body(max(1, min(tokens, tokens * next(firsts) // streams))))

    async with repeated(stream, streams):
        return await pace_of(url, seconds, skipped=0.4)


async def trial(url: str, name: str, streams: int, seconds: float, max_wait: float) -> Table:
    """The closed loop, the open loop with retries, and the closed loop again."""
    sizing, compared = _CLOSED_SECONDS
    possible = await closed(url, streams, _PACE_TOKENS, sizing)
    tokens = min(_LONGEST, max(_SHORTEST, round(possible / _RATE)))
    capacity = await closed(url, streams, tokens, compared)
    overload = Overload(url, tokens, TIMES * capacity / tokens, seconds)
    async with Retries(lambda call: ask(url, call), time.perf_counter() + seconds) as retries:
        await overload.load(retries)
        await retries.wait_for_all(_SETTLE_SECONDS)
    capacities = capacity, await closed(url, streams, tokens, compared)
    table = Table(name)
    before, after = capacities
    arrivals = f"{tokens} tokens an answer; {overload.rate:.1f}/s"
    table.note("closed loop before and after; arrivals", f"{before:.0f}, {after:.0f} tokens/s, {arrivals}")
    _rows(table, overload, (before + after) / 2, max_wait)
    retries.rows(table)
    return table


def _rows(table: Table, overload: Overload, capacity: float, max_wait: float) -> None:
    refusals = [each.pieces[-1][0] - each.asked for each in overload.answers if each.status == 503]
    slow = percentile(refusals, 0.99)
    limit = f"p99 at most {1000 * REFUSAL_SECONDS:.0f} ms"
    table.note("delay of the client itself", spread(overload.delays, "ms"))
    table.bound("refusals", spread(refusals, "ms"), limit, not slow > REFUSAL_SECONDS)
    _rows_of_admitted(table, [each for each in overload.answers if each.status == 200], max_wait)
    others = sum(each.status not in (200, 503) or not each.whole for each in overload.answers)
    table.bound("answers that are neither a whole stream nor a refusal", str(others), "none", others == 0)
    share = overload.pace / capacity
    table.bound(
        "tokens/s to the mean of the closed loops",
        f"{share:.2f}",
        f"at least {LEAST_THROUGHPUT}",
        share >= LEAST_THROUGHPUT,
    )


def _rows_of_admitted(table: Table, admitted: Sequence[Answer], max_wait: float) -> None:
    firsts = [first for each in admitted if (first := first_token(each)) is not None]
    in_time = sum(first <= max_wait for first in firsts)
    table.note("time to first token of those admitted", spread(firsts))
    table.bound(
        f"first token within {max_wait:g} s",
        f"{100 * in_time / max(1, len(admitted)):.1f} % of {len(admitted)}",
        "99 %",
        in_time >= 0.99 * len(admitted),
    )


def main() -> None:
    """Measures and prints."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=300.0, help="of the overload")
    made.add_argument("--max-wait", type=float, default=30.0, help="the server's limit on waits")
    options, rest = made.parse_known_args()
    if options.max_wait != made.get_default("max_wait"):
        rest += ["--max-wait", str(options.max_wait)]
    name = f"overload, {options.model}, {options.replicas} replicas"
    streams = options.replicas * options.slots
    with serving(options, contender_of(options, rest)) as served:
        run(lambda: trial(served.url, name, streams, options.seconds, options.max_wait))


if __name__ == "__main__":
    main()
