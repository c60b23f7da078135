"""Two replicas of different speed: `python -m benchmarks.trials.uneven`.

The last replica's engine is stopped for 60 ms of every 80 ms while bursts of more requests than slots arrive.
Measures how long a request waited while a ready engine had a free slot: the client knows how many requests
are open, the engines report how many they run.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import psutil

from ..server import Served
from .fairness import body
from .replies import first_token
from .sse import Answer, ask
from .trial import Metrics, Table, contender, engines, parser, percentile, run, scrape, serving, spread

MOST_SECONDS = 0.5
"""The client's and the engines' numbers are of slightly different times."""
_LOOK_SECONDS = 0.1
_STOPPED_SECONDS, _RUNNING_SECONDS = 0.06, 0.02
_BURST = 4
"""Requests per burst, for each slot of all engines."""


@dataclass(slots=True)
class Watch:
    """Checks repeatedly whether a request waits while a slot is free.

    Attributes:
      spells: seconds of each such period. open: the client's open requests.
      paces: tokens per second of each replica between two checks with all slots in use.
    """

    url: str
    slots: int
    open: int = 0
    spells: list[float] = field(default_factory=list)
    paces: list[dict[int, float]] = field(default_factory=list)
    _since: float | None = None

    async def run(self) -> None:
        """Runs until it is cancelled."""
        last: tuple[float, Metrics] | None = None
        while True:
            now, found = time.perf_counter(), await scrape(self.url)
            self._note_idle(now, is_idle(found, self.slots, self.open))
            if last and all(is_full(each, self.slots) for each in (last[1], found)):
                self.paces.append(_rates(last[1], found, now - last[0]))
            last = now, found
            await asyncio.sleep(_LOOK_SECONDS)  # the load is sampled

    def _note_idle(self, now: float, idle: bool) -> None:
        if not idle:
            self._since = None
        elif self._since is None:
            self._since = now
            self.spells.append(0.0)
        else:
            self.spells[-1] = now - self._since


def is_idle(found: Metrics, slots: int, open: int) -> bool:
    """Whether an engine has a free slot while more requests are open than all engines run."""
    running, ready = (found.replicas(f"distaff_engine_{name}") for name in ("running", "ready"))
    free = any(ready[replica] and count < slots for replica, count in running.items())
    return free and open > sum(running.values())


def is_full(found: Metrics, slots: int) -> bool:
    """Whether all slots of all engines are in use."""
    return min(found.replicas("distaff_engine_running").values()) >= slots


def _rates(before: Metrics, after: Metrics, seconds: float) -> dict[int, float]:
    first, last = (each.replicas("distaff_engine_generated_tokens_total") for each in (before, after))
    return {replica: (last[replica] - first[replica]) / seconds for replica in last}


@contextlib.asynccontextmanager
async def slowed_down(served: Served, replica: int) -> AsyncIterator[None]:
    """Stops an engine again and again during the context, as if its processor were several times slower.

    A lower priority would slow it down only while something else needs its cores.
    """
    engine = engines(served.process)[replica]

    async def alternate() -> None:
        while True:
            engine.suspend()
            await asyncio.sleep(_STOPPED_SECONDS)  # the two lengths are the engine's speed
            engine.resume()
            await asyncio.sleep(_RUNNING_SECONDS)

    task = asyncio.create_task(alternate())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(psutil.NoSuchProcess):  # it was replaced: the task has failed as well
            engine.resume()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def burst(watch: Watch, count: int, tokens: int) -> list[Answer]:
    """Sends `count` requests at once and waits until they end."""

    async def one() -> Answer:
        watch.open += 1
        try:
            return await ask(watch.url, body(tokens))
        finally:
            watch.open -= 1

    return await asyncio.gather(*(one() for _ in range(count)))


async def trial(served: Served, options: argparse.Namespace) -> Table:
    """Sends bursts until the time is over."""
    watch, answers = Watch(served.url, options.slots), list[Answer]()
    looking = asyncio.create_task(watch.run())
    ends = time.perf_counter() + options.seconds
    async with slowed_down(served, options.replicas - 1):
        while time.perf_counter() < ends:
            count = _BURST * options.replicas * options.slots
            answers += await burst(watch, count, options.tokens)
    looking.cancel()
    table = Table(f"different speed, {options.model}, {options.replicas} replicas")
    rates = [percentile([each[n] for each in watch.paces], 0.5) for n in range(options.replicas)]
    shown, slow = ", ".join(f"{rate:.0f}" for rate in rates), rates[-1] <= min(rates[:-1]) / 2
    table.bound("tokens/s of each replica while all slots run", shown, "the last: at most half", slow)
    _rows(table, answers, watch.spells)
    return table


def _rows(table: Table, answers: Sequence[Answer], spells: Sequence[float]) -> None:
    firsts = [first for each in answers if (first := first_token(each)) is not None]
    table.note("time to first token", spread(firsts))
    failed = sum(each.status != 200 or not each.whole for each in answers)
    table.bound("answers that failed", f"{failed} of {len(answers)}", "none", failed == 0)
    longest = max(spells, default=0.0)
    table.bound(
        "a request waited while an engine had room",
        f"longest {longest:.1f} s, {sum(spells):.1f} s of all",
        f"at most {MOST_SECONDS:g} s",
        longest <= MOST_SECONDS,
    )


def main() -> None:
    """Measures and prints."""
    made = parser(__doc__)
    made.set_defaults(replicas=2, slots=8)
    made.add_argument("--seconds", type=float, default=60.0, help="of bursts")
    made.add_argument("--tokens", type=int, default=1500, help="of an answer")
    options, rest = made.parse_known_args()
    if options.replicas < 2:
        made.error(f"--replicas is {options.replicas}; expected at least 2")
    with serving(options, contender(options, ["--max-wait", "300", *rest])) as served:  # none is refused
        run(lambda: trial(served, options))


if __name__ == "__main__":
    main()
