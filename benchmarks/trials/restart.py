"""How soon a killed engine serves again, beside another one: `python -m benchmarks.trials.restart`.

A server with one engine is started twice: the second start finds all compiled steps in the cache, and a
restart is compared with its time. Then two replicas serve a few endless streams, and one of them is killed,
several times. Measures the seconds until it is ready, and the time between tokens before and meanwhile.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..load import gaps_during
from ..server import Served, running
from .fairness import body, repeated
from .faults import Killer
from .sse import Answer, ask
from .trial import Table, contender, parser, percentile, run, serving, spread

MOST_TIMES_FIRST = 1.5
MOST_SLOWER = 2.0
_CALM_SECONDS = 10.0
"""The time before each kill, for comparison."""
_AGAIN_SECONDS = 0.2
"""The pause before a failed stream is started again."""


@dataclass(slots=True)
class Streams:
    """The answers of a few streams.

    Attributes:
      answers: the completed ones.
    """

    url: str
    tokens: int
    answers: list[Answer] = field(default_factory=list)

    async def stream(self) -> None:
        """One answer; after a failure, a pause."""
        answer = await ask(self.url, body(self.tokens))
        self.answers.append(answer)
        if not answer.whole or answer.status != 200:
            await asyncio.sleep(_AGAIN_SECONDS)  # no busy loop while the server has no engine

    def gaps(self, begun: float, ended: float) -> list[float]:
        """Seconds between pieces within a window, of the completed answers."""
        moments = [[moment for moment, _ in answer.pieces] for answer in self.answers]
        inside = [[moment for moment in each if begun <= moment <= ended] for each in moments]
        return [gap for each in inside for gap in gaps_during(each, begun, ended)]


async def trial(served: Served, options: argparse.Namespace, first: float) -> Table:
    """Repeats: a calm period, a kill, a wait until the engine is ready again."""
    windows = []
    streams = Streams(served.url, options.tokens)
    async with repeated(streams.stream, 2 * options.replicas):
        killer = Killer(served, options.replicas, 0.0)
        for _ in range(options.kills):
            calm = time.perf_counter()
            await asyncio.sleep(_CALM_SECONDS)  # the window before the kill
            killed = await killer.kill_next()
            await killer.recovered()
            windows.append((calm, killed, time.perf_counter()))
        await asyncio.sleep(options.rest)  # for the answers of the last window to end
    before = [gap for calm, killed, _ in windows for gap in streams.gaps(calm, killed)]
    meanwhile = [gap for _, killed, ready in windows for gap in streams.gaps(killed, ready)]
    table = Table(f"restart, {options.model}, {options.replicas} replicas")
    _rows(table, first, killer.away, before, meanwhile)
    return table


def _rows(table: Table, first: float, away: list[float], before: list[float], meanwhile: list[float]) -> None:
    ratio = percentile(away, 0.5) / first
    table.note("ready with all steps in the cache, alone", f"{first:.1f} s")
    table.note("ready again after a kill", ", ".join(f"{seconds:.1f}" for seconds in away) + " s")
    bound = f"at most {MOST_TIMES_FIRST}"
    table.bound("the median of these to the first", f"{ratio:.2f}", bound, ratio <= MOST_TIMES_FIRST)
    means = [statistics.fmean(gaps) for gaps in (before, meanwhile)]  # drafts come several at once
    for when, gaps, mean in zip(("before", "meanwhile"), (before, meanwhile), means, strict=True):
        table.note(f"between tokens {when}", f"mean {1000 * mean:.2f}, {spread(gaps, 'ms')}")
    slower = means[1] / means[0]
    table.bound("the means of these", f"{slower:.2f}", f"at most {MOST_SLOWER:g}", slower <= MOST_SLOWER)


def _warm_start(options: argparse.Namespace, rest: Iterable[str]) -> float:
    """Seconds until a single engine is ready, with its steps in the cache."""
    alone = argparse.Namespace(**vars(options) | {"replicas": 1})
    contended = contender(alone, list(rest))
    with serving(alone, contended):
        pass
    with running(contended) as served:
        return served.seconds_to_ready


def main() -> None:
    """Measures and prints."""
    made = parser(__doc__)
    made.set_defaults(replicas=2)
    made.add_argument("--kills", type=int, default=3)
    made.add_argument("--tokens", type=int, default=300, help="of each answer")
    made.add_argument("--rest", type=float, default=15.0, help="seconds for the last answers to end")
    options, rest = made.parse_known_args()
    first = _warm_start(options, rest)
    with serving(options, contender(options, rest)) as served:
        run(lambda: trial(served, options, first))


if __name__ == "__main__":
    main()
