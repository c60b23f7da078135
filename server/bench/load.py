"""Applies a load to a server and keeps the record of every request that ended.

A *closed* load (a limit of concurrency and no rate) sends a request as soon as another one has ended. In an
*open* load every request has a time at which it is due, whatever the server does. If requests are sent later
than that, because of a limit of concurrency or of a slow client, the records say so.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from .record import Record
from .schedule import arrival_times

_LAG_PERIOD = 0.01
"""Seconds between two checks of the event loop."""

Request = TypeVar("Request")
Send = Callable[[Request, float], Coroutine[Any, Any, Record]]
"""Sends a request that was due at a time of `perf_counter`."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests are sent.

    Attributes:
      concurrency: most requests at a time; None: no limit. rate: requests per second; infinite: at once.
      burstiness: of the arrivals, as in `arrival_times`.
    """

    concurrency: int | None = None
    rate: float = math.inf
    burstiness: float = 1.0

    @property
    def is_closed(self) -> bool:
        """Whether the server's answers decide when requests are sent."""
        return self.concurrency is not None and math.isinf(self.rate)


@dataclass(slots=True)
class Outcome:
    """What a load has shown.

    Attributes:
      pace: of the load. records: of the requests that ended. unfinished: the number of those that had not
        ended at an interrupt, or had not been sent. began: of `perf_counter`. duration: seconds.
      cpu: CPU seconds of this process. lags: seconds by which its event loop was late, at regular times.
      interrupted: the load was ended early.
    """

    pace: Pace
    records: list[Record] = field(default_factory=list)
    unfinished: int = 0
    began: float = 0.0
    duration: float = 0.0
    cpu: float = 0.0
    lags: list[float] = field(default_factory=list)
    interrupted: bool = False


async def apply(
    send: Send[Request],
    requests: Sequence[Request],
    pace: Pace,
    random: np.random.Generator,
    on_end: Callable[[Record], object] = lambda record: None,
) -> Outcome:
    """Sends all requests; a cancellation ends the load early and is absorbed.

    Args:
      random: draws the times of an open load. on_end: is called with each record.
    """
    outcome = Outcome(pace)

    async def keep(request: Request, due: float) -> None:
        outcome.records.append(await send(request, due))
        on_end(outcome.records[-1])

    async with _measured(outcome):
        if pace.is_closed:
            await _closed(keep, requests, pace.concurrency or 1)
        else:
            times = arrival_times(len(requests), pace.rate, pace.burstiness, random)
            await _open(keep, requests, outcome.began + times, pace.concurrency)
    outcome.unfinished = len(requests) - len(outcome.records)
    return outcome


Keep = Callable[[Request, float], Coroutine[Any, Any, None]]


async def _closed(keep: Keep[Request], requests: Sequence[Request], concurrency: int) -> None:
    waiting = iter(requests)

    async def stream() -> None:
        for request in waiting:
            await keep(request, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(requests))):
            group.create_task(stream())


async def _open(
    keep: Keep[Request], requests: Sequence[Request], times: np.ndarray, concurrency: int | None
) -> None:
    room = asyncio.Semaphore(concurrency) if concurrency else contextlib.nullcontext()

    async def one(request: Request, due: float) -> None:
        async with room:
            await keep(request, due)

    async with asyncio.TaskGroup() as group:
        for request, due in zip(requests, times.tolist(), strict=True):
            await _until(due)
            group.create_task(one(request, due))


async def _until(due: float) -> None:
    """Waits at least once, so that a load that is late still reads its answers."""
    await asyncio.sleep(due - time.perf_counter())
    while (left := due - time.perf_counter()) > 0:
        await asyncio.sleep(left)  # some loops wake up to a millisecond early


@contextlib.asynccontextmanager
async def _measured(outcome: Outcome) -> AsyncIterator[None]:
    """Measures what is inside, and the client itself; ends it at a cancellation, without passing that on."""
    watch = asyncio.create_task(_watch(outcome.lags))
    cpu, outcome.began = time.process_time(), time.perf_counter()
    try:
        yield
    except asyncio.CancelledError:
        outcome.interrupted = True
        if task := asyncio.current_task():
            task.uncancel()
    finally:
        outcome.duration = time.perf_counter() - outcome.began
        outcome.cpu = time.process_time() - cpu
        watch.cancel()


async def _watch(lags: list[float]) -> None:
    """How late the event loop is, again and again."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_LAG_PERIOD)
        lags.append(time.perf_counter() - before - _LAG_PERIOD)
