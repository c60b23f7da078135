"""What waits to be read of a call is bounded; at the bound all its sequences end, and the connection."""

import asyncio
from collections.abc import Sequence

import pytest

from distaff.server import generation
from distaff.server.generation import Generation
from distaff.server.testing import FakeEngine

from .engine_processes import request, until


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
    assert (len(cuts), call._heard.qsize()) == (1, 20 * count)


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
