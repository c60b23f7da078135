"""What waits to be read of a call is bounded; at the bound all its sequences end, and the connection."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from distaff.server.testing import FakeEngine
from distaff.server.text import generation
from distaff.server.text.generation import Generation

from ..engines.engine_processes import request, until


@pytest.fixture
async def engine() -> FakeEngine:
    engine = FakeEngine("x" * 300)
    await engine.start()
    return engine


@pytest.mark.parametrize("count", [1, 3])
async def test_the_bound_bites(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, count: int):
    monkeypatch.setattr(generation, "MOST_UNREAD", 20)
    cuts: list[None] = []
    requests = [request(str(number), max_tokens=200) for number in range(count)]
    call = Generation(engine, requests, lambda: cuts.append(None))
    await until(lambda: not engine.running)
    assert sorted(engine.aborted) == [each.id for each in requests]
    await asyncio.sleep(0.01)
    assert (len(cuts), call._events.qsize()) == (1, 20 * count)


@pytest.mark.parametrize("count", [1, 3])
async def test_who_reads_is_never_cut_off(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, count: int):
    monkeypatch.setattr(generation, "MOST_UNREAD", 1)
    requests = [request(str(number), max_tokens=100) for number in range(count)]
    call = Generation(engine, requests, lambda: pytest.fail("cut off"))
    said: Sequence[list[int | None]] = [[] for _ in requests]
    for _ in range(100 * count):
        heard = await call.next(5)
        assert heard
        said[heard[0]].append(heard[1].token)
    assert said == [[120] * 100] * count
    assert engine.aborted == []


async def test_events_with_log_probabilities_count_by_their_size(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    """Twenty alternatives make an event six times as large; what was read no longer counts."""
    monkeypatch.setattr(generation, "MOST_UNREAD", 60)
    cuts: list[None] = []
    asked = request("0", max_tokens=200)
    call = Generation(
        engine, [replace(asked, params=replace(asked.params, logprobs=20))], lambda: cuts.append(None)
    )
    heard = await call.next(5)
    assert heard and heard[1].logprobs and len(heard[1].logprobs.top) == 20
    await until(lambda: not engine.running)
    await asyncio.sleep(0.01)
    assert (len(cuts), call._events.qsize()) == (1, 10)
