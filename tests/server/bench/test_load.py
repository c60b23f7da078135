"""Closed and open loads against senders with a known behaviour."""

import asyncio
import itertools
import math
import time

import numpy as np
import pytest

from distaff.server.bench.load import Outcome, Pace, apply
from distaff.server.bench.record import Record


def random() -> np.random.Generator:
    return np.random.default_rng(1)


class Sender:
    """Answers after `seconds`; counts the requests that run at the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.running, self.most = seconds, 0, 0
        self.sent: list[int] = []

    async def __call__(self, request: int, due: float) -> Record:
        record = Record(due, time.perf_counter())
        self.sent.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        record.ended = time.perf_counter()
        return record


@pytest.mark.parametrize("concurrency", [1, 3, 50])
async def test_a_closed_load_keeps_its_streams_busy(concurrency: int):
    """Never more, and a request is due when another one has ended."""
    sender, seen = Sender(0.001), []
    outcome = await apply(sender, range(20), Pace(concurrency), random(), seen.append)
    assert sorted(sender.sent) == list(range(20)) and seen == outcome.records
    assert sender.most == min(concurrency, 20)
    dues, ends = sorted(r.due for r in outcome.records), sorted(r.ended for r in outcome.records)
    assert all(due >= end for due, end in zip(dues[concurrency:], ends, strict=False))
    assert (outcome.unfinished, outcome.interrupted) == (0, False)


async def test_everything_at_once():
    """An infinite rate without a limit."""
    sender = Sender(0.05)
    outcome = await apply(sender, range(20), Pace(), random())
    assert sender.most == 20 and {r.due for r in outcome.records} == {outcome.began}


async def test_an_open_load_keeps_its_schedule_whatever_the_server_does():
    """Requests are due at the same times for a server that answers and for one that does not."""
    offsets = []
    for seconds in (0.0, 0.3):
        sender = Sender(seconds)
        outcome = await apply(sender, range(20), Pace(rate=200.0), random())
        offsets.append(sorted(r.due - outcome.began for r in outcome.records))
        assert all(r.sent >= r.due for r in outcome.records)
    assert sender.most == 20
    assert offsets[0] == pytest.approx(offsets[1], abs=1e-6)
    assert offsets[0][-1] == pytest.approx(20 / 200)


async def test_a_limit_of_concurrency_delays_an_open_load_and_the_records_say_so():
    """Latencies that include the queue grow; the times at which requests were due do not move."""
    sender = Sender(0.02)
    outcome = await apply(sender, range(10), Pace(1, rate=1e4), random())
    queued = [record.queued for record in outcome.records]
    assert sender.most == 1 and max(record.due for record in outcome.records) <= outcome.began + 0.002
    assert all(later - earlier > 0.01 for earlier, later in itertools.pairwise(queued))


@pytest.mark.parametrize("pace", [Pace(2), Pace(), Pace(rate=50.0), Pace(2, rate=50.0)])
async def test_an_interrupt_keeps_what_has_ended(pace: Pace):
    """And the requests that had not ended are counted, whichever had been sent."""
    ended = asyncio.Event()

    async def send(request: int, due: float) -> Record:
        if request:
            await asyncio.Event().wait()
        return Record(due, due, ended=due)

    async def main() -> Outcome:
        return await apply(send, range(9), pace, random(), lambda record: ended.set())

    task = asyncio.create_task(main())
    await ended.wait()
    task.cancel()
    outcome = await task
    assert outcome.interrupted and not task.cancelling()
    assert (len(outcome.records), outcome.unfinished) == (1, 8)
    assert outcome.duration > 0


async def test_a_loop_that_is_blocked_shows():
    """The client measures itself: CPU seconds, and how late its event loop was."""

    async def send(request: int, due: float) -> Record:
        limit = time.process_time() + 0.1
        while time.process_time() < limit:
            math.sqrt(2)
        await asyncio.sleep(0.02)
        return Record(due, due, ended=due)

    outcome = await apply(send, range(3), Pace(1), random())
    assert outcome.cpu >= 0.3 and max(outcome.lags) >= 0.08
