"""Streams while their engines are killed: `python -m benchmarks.trials.faults --replicas 2`.

32 calls of all protocols run repeatedly while one engine after another gets a SIGKILL. Before that the same
calls run undisturbed on the same server, twice: once for the expected results, and once more to see how far
they are reproducible. No stream may end because of a crash, texts and usage must be equal, and the longest
pause is shown with the longest time that a replica was away.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from ..server import Contender, Served
from .mixed import Expected, body_of, calls, sized, undisturbed
from .replies import Content, content_of, longest_pause
from .sse import ask
from .trial import Table, contender, engines, parser, percentile, run, scrape, serving, spread

_POLL_SECONDS = 0.2
_PAUSE_SLACK_SECONDS = 2.0
"""How much longer than the restart a pause may be: previous tokens are computed again."""
_RECOVERY_SECONDS = 120.0
"""The maximum time that a replica may be away after the last kill."""
_LOGPROB_DIFFERENCE = 0.01
_MOST_SHOWN = 5


@dataclass(slots=True)
class Differences:
    """How answers differ from what was expected."""

    answers: int = 0
    refused: int = 0
    ended: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: int = 0
    logprobs: int = 0
    pauses: list[tuple[float, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, expected: Expected, received: Content) -> None:
        """Compares one answer."""
        self.answers += 1
        name, wanted = f"{expected.call.path} {_brief(expected)}", expected.content
        if received.refused:
            self.refused += 1
            return
        if received.error:
            self.ended.append(f"{name}: {received.error}")
            return
        if received.choices != wanted.choices:
            self.texts.append(f"{name}: {_first_difference(received.choices, wanted.choices)}")
        self.usage += received.usage != wanted.usage
        self.logprobs += _differ(received.logprobs, wanted.logprobs)


def _brief(expected: Expected) -> str:
    body = body_of(expected.call)
    return ",".join(sorted(set(body) - {"model", "messages", "prompt", "input", "inputs", "stream_options"}))


def _first_difference(received: object, wanted: object) -> str:
    """The first difference of two texts."""
    one, other = repr(received), repr(wanted)
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
    here = slice(place, place + 40)
    return f"from character {place} of {len(other)}: {one[here]!r}, not {other[here]!r}"


def _differ(received: Sequence[float], wanted: Sequence[float]) -> bool:
    same = len(received) == len(wanted)
    return not same or any(abs(a - b) > _LOGPROB_DIFFERENCE for a, b in zip(received, wanted, strict=True))


@dataclass(slots=True)
class Killer:
    """Kills the first `replicas` engines in turn, each when it is ready.

    Attributes:
      every: seconds between two kills. key: for `/metrics`, if the server wants one.
      kills: their number. away: seconds from a kill until that replica was ready again.
    """

    served: Served
    replicas: int
    every: float
    key: str | None = None
    kills: int = 0
    away: list[float] = field(default_factory=list)
    _killed: dict[int, float] = field(default_factory=dict)

    async def run(self, seconds: float) -> None:
        """Runs until the time is over, and then until all are ready again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._watch(self.every)
                    await self.kill_next()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RECOVERY_SECONDS):
                await self.recovered()

    async def kill_next(self) -> float:
        """Kills the next engine as soon as it is ready; returns the time of the kill."""
        while True:
            turn = self.kills % self.replicas
            if turn in await self._look() and self._kill(turn):
                return self._killed[turn]
            await asyncio.sleep(_POLL_SECONDS)  # readiness is polled: /metrics has no event for it

    async def recovered(self) -> None:
        """Waits until all are ready again."""
        while self._killed:
            await self._look()
            await asyncio.sleep(_POLL_SECONDS)  # readiness is polled: /metrics has no event for it

    async def _watch(self, seconds: float) -> None:
        """Checks for a while which replicas are ready again."""
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            await self._look()
            await asyncio.sleep(_POLL_SECONDS)  # readiness is polled: /metrics has no event for it

    async def _look(self) -> set[int]:
        """The ready replicas; records those that are ready again."""
        found = (await scrape(self.served.url, self.key)).replicas("distaff_engine_ready")
        ready = {replica for replica, value in found.items() if value}
        for replica in ready & set(self._killed):
            if time.perf_counter() - self._killed[replica] > 1:  # the crash is not visible immediately
                self.away.append(time.perf_counter() - self._killed.pop(replica))
        return ready

    def _kill(self, replica: int) -> bool:
        try:
            engines(self.served.process)[replica].kill()
        except (KeyError, psutil.Error):
            return False
        self._killed[replica] = time.perf_counter()
        self.kills += 1
        return True


async def repeat(url: str, expected: Expected, ends: float, found: Differences) -> None:
    """Sends the same request repeatedly until the time is over."""
    while time.perf_counter() < ends:
        answer = await ask(url, expected.call)
        received = content_of(expected.call.path, answer)
        found.add(expected, received)
        if received.error is None:
            found.pauses.append((longest_pause(answer), f"{expected.call.path} {_brief(expected)}"))
            found.seconds.append(answer.pieces[-1][0] - answer.asked)
        else:
            await asyncio.sleep(1)  # no busy loop while the server has no engine


async def trial(served: Served, options: argparse.Namespace) -> Table:
    """Undisturbed twice, then under faults."""
    url = served.url
    asked = await sized(url, calls(), options.longest)
    expected = await undisturbed(url, asked)
    control, found = Differences(), Differences()
    for one, again in zip(expected, await undisturbed(url, asked), strict=True):
        control.add(one, again.content)
    killer = Killer(served, options.replicas, options.every)
    ends = time.perf_counter() + options.seconds
    await asyncio.gather(killer.run(options.seconds), *(repeat(url, each, ends, found) for each in expected))
    return _table(served, options, control, found, killer)


def _table(
    served: Served, options: argparse.Namespace, control: Differences, found: Differences, killer: Killer
) -> Table:
    table = Table(f"faults, {options.model}, {options.replicas} replicas")
    table.note("kills; answers", f"{killer.kills} in {options.seconds:.0f} s; {found.answers}")
    refused = f"{found.refused} of {found.answers}"
    if options.replicas == 1:
        table.note("requests refused while the engine restarted", refused)
    else:
        table.bound("requests refused", refused, "none", found.refused == 0)
    table.note("seconds of an answer", spread(found.seconds))
    table.note("texts that differ between two undisturbed runs", f"{len(control.texts)} of {control.answers}")
    for figure, count in (
        ("streams that ended with an error", len(found.ended)),
        ("texts that differ", len(found.texts)),
        ("usage that differs", found.usage),
        (f"log-probabilities off by more than {_LOGPROB_DIFFERENCE}", found.logprobs),
    ):
        table.bound(figure, f"{count} of {found.answers}", "none", count == 0)
    _rows_of_pauses(table, served, options, found, killer)
    for line in [*found.ended[:_MOST_SHOWN], *found.texts[:_MOST_SHOWN]]:
        print(line, file=sys.stderr)
    return table


def _rows_of_pauses(
    table: Table, served: Served, options: argparse.Namespace, found: Differences, killer: Killer
) -> None:
    first = served.seconds_to_ready
    longest, which = max(found.pauses, default=(0.0, ""))
    away = max(killer.away, default=0.0)
    table.note("first start; a killed replica was away", f"{first:.1f} s; {spread(killer.away)}")
    lost = killer.kills - len(killer.away)
    table.bound("killed replicas that did not come back", f"{lost} of {killer.kills}", "none", lost == 0)
    middle = percentile([seconds for seconds, _ in found.pauses], 0.5)
    pauses = f"p50 {middle:.2f}, longest {longest:.1f} s ({which})"
    if options.replicas == 1:
        limit = away + _PAUSE_SLACK_SECONDS
        table.bound("longest pause of a stream", pauses, f"the restart: {limit:.1f} s", longest <= limit)
    else:
        table.note("longest pause of a stream", pauses)


def add_lengths(made: argparse.ArgumentParser) -> None:
    """Adds the options of trials that compare texts."""
    made.add_argument("--longest", type=int, default=3000, help="tokens of an answer")
    made.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="serve with --deterministic; otherwise a near tie may change a text with the batch",
    )


def comparable(options: argparse.Namespace, rest: Sequence[str]) -> Contender:
    """The server of these trials."""
    return contender(options, [*(["--deterministic"] if options.deterministic else []), *rest])


def main() -> None:
    """Measures and prints."""
    made = parser(__doc__)
    made.set_defaults(slots=48)
    made.add_argument("--seconds", type=float, default=180.0, help="of the faults")
    made.add_argument("--every", type=float, default=10.0, help="seconds between two kills")
    add_lengths(made)
    options, rest = made.parse_known_args()
    with serving(options, comparable(options, rest)) as served:
        run(lambda: trial(served, options))


if __name__ == "__main__":
    main()
