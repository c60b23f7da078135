"""Ten minutes, or hours, of everything at once: `python -m benchmarks.soak --minutes 10`.

Calls of all protocols, some of which are aborted or malformed, go to a server of several engines, one of
which keeps running while the others are killed in turn; its file of keys changes. Every answer must be the
right one, and nothing may grow: memory is compared between the first minute after the warm-up and the last,
and files, threads and pages are counted while nothing runs, before and after. Exit code 1 if a bound is
missed.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..server import Served
from ..trials.faults import Killer
from ..trials.sse import Answer, ask
from ..trials.trial import Table, contender, parser, run, serving, spread
from .calls import Asked, Mix, fault_of, is_refusal
from .keys import KeyFile
from .watch import Growth, Idle, Series, Watch, differences, growth, idle

ABORTED, MALFORMED = 0.10, 0.02
"""The shares of calls."""
_LONGEST_READ_SECONDS = 1.5
"""Aborted calls are left at a random time before that."""
_LONGEST_RETRY = 5.0
_MOST_SHOWN = 10
_MIB = 1 << 20


@dataclass(slots=True)
class Tally:
    """What became of all calls.

    Attributes:
      counts: by `right`, `refused`, `aborted`, `malformed`. faults: answers that are not right.
      seconds: of the answers that were read to their end, by the time of the end.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: Series = field(default_factory=list)

    def add(self, asked: Asked, answer: Answer) -> None:
        """Judges one answer."""
        fault = fault_of(asked, answer)
        if fault:
            self.faults.append(f"{asked.call.path} {fault}")
        elif is_refusal(asked, answer):
            self.counts["refused"] += 1
        else:
            self.counts["malformed" if asked.judge is None else "right"] += 1
        if answer.pieces:
            self.seconds.append((answer.pieces[-1][0], answer.pieces[-1][0] - answer.asked))


@dataclass(slots=True)
class Soak:
    """One run on a server."""

    served: Served
    options: argparse.Namespace
    keys: KeyFile
    tally: Tally = field(default_factory=Tally)

    async def run(self) -> Table:
        """Warms up, counts, sends load and kills engines, and counts again."""
        watch = Watch(self.served.process, self.options.replicas - 1)
        killer = Killer(self.served, self.options.replicas - 1, self.options.kill_every, self.keys.lasting)
        await self._load(self.options.warm_up, [])
        self.tally = Tally()
        before = await self._idle(watch)
        seconds = 60 * self.options.minutes
        killing = asyncio.create_task(killer.run(seconds))
        await self._load(seconds, [watch.run(), self.keys.run(self.served.url, self.options.keys_every)])
        await killing
        after = await self._idle(watch)
        grown = {name: growth(series) for name, series in watch.series.items()}
        return report(self.options, self.tally, self.keys, killer, grown, (before, after))

    async def _idle(self, watch: Watch) -> Idle:
        return await idle(self.served.url, self.keys.lasting, watch, self.options.replicas)

    async def _load(self, seconds: float, beside: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Keeps all streams busy for some time, with tasks beside them; calls that have begun are ended."""
        ends = time.perf_counter() + seconds
        tasks = [asyncio.create_task(each) for each in beside]
        await asyncio.gather(*(self._stream(number, ends) for number in range(self.options.streams)))
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _stream(self, number: int, ends: float) -> None:
        """One client: a call after the other."""
        mix, chance = Mix(number), random.Random(number)
        while time.perf_counter() < ends:
            draw = chance.random()
            if draw < MALFORMED:
                await self._ask(mix.draw_malformed())
            elif draw < MALFORMED + ABORTED:
                await self._abort(mix.draw(), chance.uniform(0, _LONGEST_READ_SECONDS))
            else:
                await self._ask(mix.draw())

    async def _ask(self, asked: Asked) -> None:
        answer = await ask(self.served.url, asked.call, asked.key or self.keys.current)
        self.tally.add(asked, answer)
        if is_refusal(asked, answer):
            await asyncio.sleep(min(answer.retry_after or 1.0, _LONGEST_RETRY))  # as clients do

    async def _abort(self, asked: Asked, seconds: float) -> None:
        """Leaves after some time; a call that was quicker is judged as any other."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ask(asked)
                return
        self.tally.counts["aborted"] += 1


def report(
    options: argparse.Namespace,
    tally: Tally,
    keys: KeyFile,
    killer: Killer,
    grown: dict[str, Growth],
    counted: tuple[Idle, Idle],
) -> Table:
    """The rows, with a bound for everything that must not grow or go wrong."""
    table = Table(f"soak of {options.minutes:g} min, {options.model}, {options.replicas} replicas")
    sent = sum(tally.counts.values()) + len(tally.faults)
    table.note("calls", f"{sent}: " + ", ".join(f"{n} {name}" for name, n in tally.counts.most_common()))
    pace = growth(tally.seconds)
    table.note("seconds of an answer", spread([seconds for _, seconds in tally.seconds]))
    table.note("their median, first and last minute", f"{pace.first:.2f} and {pace.last:.2f}")
    table.bound("wrong answers", str(len(tally.faults)), "none", not tally.faults)
    lost = killer.kills - len(killer.away)
    table.bound("engines killed; not back", f"{killer.kills}; {lost}", "all back", lost == 0)
    table.bound("changes of the keys; wrong", f"{keys.changes}; {len(keys.faults)}", "none", not keys.faults)
    for name, change in grown.items():
        limit = options.most_mib + change.first / _MIB * options.most_percent / 100
        sizes = f"{change.first / _MIB:.1f} to {change.last / _MIB:.1f} MiB"
        measured = f"{sizes}; second half {change.slope / _MIB:+.1f} an hour"
        met = change.added / _MIB <= limit
        table.bound(f"resident, {name}", measured, f"at most {limit:.0f} more", met)
    before, after = counted
    for name, was, now in differences(before, after):
        table.bound(f"{name}, idle", f"{was} to {now}", "no more", now <= was)
    for replica, pages in after.pages_in_use.items():
        table.bound(f"pages in use, replica {replica}, idle", f"{pages:.0f}", "none", pages == 0)
    for fault in [*tally.faults, *keys.faults][:_MOST_SHOWN]:
        print(fault, file=sys.stderr)
    return table


def main() -> None:
    """Runs and prints."""
    made = parser(__doc__)
    made.set_defaults(replicas=2)
    made.add_argument("--minutes", type=float, default=10.0, help="after the warm-up")
    made.add_argument("--warm-up", type=float, default=60.0, help="seconds of the same load before")
    made.add_argument("--streams", type=int, default=40, help="clients that send one call after the other")
    made.add_argument("--kill-every", type=float, default=45.0, help="seconds between two kills")
    made.add_argument(
        "--keys-every", type=float, default=15.0, help="seconds between two changes of the keys"
    )
    made.add_argument("--kv-tokens", type=int, default=16384, help="of a pool, which fills in the warm-up")
    made.add_argument("--most-mib", type=float, default=8.0, help="of growth of a process")
    made.add_argument("--most-percent", type=float, default=2.0, help="of growth of a process, in addition")
    options, rest = made.parse_known_args()
    if options.replicas < 2:
        made.error("a soak needs two --replicas: one of them is never killed")
    with tempfile.TemporaryDirectory() as folder:
        keys = KeyFile(Path(folder) / "keys.txt")
        sizes = ["--kv-tokens", str(options.kv_tokens)]
        words = ["--api-keys", str(Path(folder) / "keys.txt"), *sizes, *rest]
        with serving(options, contender(options, words), keys.lasting) as served:
            run(Soak(served, options, keys).run)


if __name__ == "__main__":
    main()
