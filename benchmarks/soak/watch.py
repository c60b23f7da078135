"""What a server holds while a soak runs: its processes' memory, open files and threads, its engines' pages.

Memory is sampled under load and compared between the first and the last minute. Files, threads and pages are
counted while nothing runs, before and after, because then their numbers are known.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from ..trials.trial import engines, scrape

EVERY_SECONDS = 1.0
MINUTE = 60.0
_PATIENCE = 120.0
Series = list[tuple[float, float]]
"""Seconds since the start of the measurement, and a value."""


@dataclass(frozen=True, slots=True)
class Held:
    """Counts of one process while nothing runs."""

    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Idle:
    """A server at a moment when nothing runs.

    Attributes:
      processes: by name. pages_in_use: of each replica. in_flight: calls, and sequences in the queue.
    """

    processes: dict[str, Held]
    pages_in_use: dict[int, float]
    in_flight: float


@dataclass(slots=True)
class Growth:
    """How a value changed.

    Attributes:
      first, last: medians of the first and the last minute.
      slope: per hour, by least squares over the second half, when caches are full.
    """

    first: float
    last: float
    slope: float

    @property
    def added(self) -> float:
        """From the first minute to the last one."""
        return self.last - self.first


def growth(series: Series) -> Growth:
    """Compares the ends of a series, and fits a line through its second half."""
    begun, ended = series[0][0], series[-1][0]
    half = [(moment, value) for moment, value in series if moment >= (begun + ended) / 2]
    first = [value for moment, value in series if moment <= begun + MINUTE]
    last = [value for moment, value in series if moment >= ended - MINUTE]
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope if half[0][0] < ended else 0.0
    return Growth(statistics.median(first), statistics.median(last), 3600 * slope)


@dataclass(slots=True)
class Watch:
    """Samples the resident memory of a server's processes: of the web process, of the engine that is never
    killed, and of the helpers that render templates together.

    Attributes:
      lasting: the replica that is never killed. series: bytes by process.
    """

    server: psutil.Process
    lasting: int
    series: dict[str, Series] = field(default_factory=dict)

    async def run(self) -> None:
        """Samples until it is cancelled."""
        begun = time.perf_counter()
        while True:
            for name, size in self._sizes().items():
                self.series.setdefault(name, []).append((time.perf_counter() - begun, size))
            await asyncio.sleep(EVERY_SECONDS)  # the interval itself

    def processes(self) -> dict[str, psutil.Process]:
        """The web process and the lasting engine, by name."""
        return {"web process": self.server, f"engine {self.lasting}": engines(self.server)[self.lasting]}

    def _sizes(self) -> dict[str, float]:
        known = self.processes()
        own = {each.pid for each in engines(self.server).values()}
        helpers = [each for each in self.server.children(recursive=True) if each.pid not in own]
        sizes: dict[str, float] = {name: each.memory_info().rss for name, each in known.items()}
        sizes["helpers"] = sum(_resident(each) for each in helpers)
        return sizes


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0  # it has ended


async def idle(url: str, key: str, watch: Watch, replicas: int) -> Idle:
    """Waits until nothing runs and all replicas are ready, and counts.

    Raises:
      RuntimeError: it is not so within two minutes; the counts are in the message.
    """
    deadline = time.perf_counter() + _PATIENCE
    while (found := await _counted(url, key, watch, replicas)) is None or found.in_flight:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the server is not idle after {_PATIENCE:.0f} s: {found}")
        await asyncio.sleep(0.5)  # until the next poll
    await asyncio.sleep(2)  # a connection and an ended sequence leave the counts a moment later
    found = await _counted(url, key, watch, replicas)
    assert found is not None
    return found


async def _counted(url: str, key: str, watch: Watch, replicas: int) -> Idle | None:
    """None while a replica is not ready."""
    metrics = await scrape(url, key)
    if sum(metrics.replicas("distaff_engine_ready").values()) < replicas:
        return None
    total, free = (metrics.replicas(f"distaff_engine_{name}_pages") for name in ("total", "free"))
    waiting = metrics.samples["distaff_queue_requests"] + metrics.samples["distaff_requests_in_flight"]
    processes = {name: Held(each.num_fds(), each.num_threads()) for name, each in watch.processes().items()}
    return Idle(processes, {replica: total[replica] - free[replica] for replica in total}, waiting)


def differences(before: Idle, after: Idle) -> Sequence[tuple[str, int, int]]:
    """What is counted while nothing runs, by name: before and after."""
    rows = []
    for name, held in before.processes.items():
        now = after.processes[name]
        rows.append((f"open files, {name}", held.files, now.files))
        rows.append((f"threads, {name}", held.threads, now.threads))
    return rows
