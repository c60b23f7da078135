"""Work off the event loop: in turn by client, and nothing is lost of those who leave."""

import asyncio
import threading

import pytest

from distaff.server.answering import off_loop
from distaff.server.answering.off_loop import FairPool, OffLoop
from distaff.server.errors import RenderingOverloaded


class Gate:
    """Work that goes on until it is let through, and notes its order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._open = threading.Semaphore(0)

    def work(self, name: str) -> str:
        self.begun.append(name)
        assert self._open.acquire(timeout=20)
        return name

    def let_through(self, count: int = 1) -> None:
        self._open.release(count)


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def until_begun(gate: Gate, count: int) -> None:
    async with asyncio.timeout(20):
        while len(gate.begun) < count:
            await asyncio.sleep(0.001)


async def test_a_client_with_much_work_does_not_keep_another_waiting(gate: Gate):
    pool = FairPool(2, "test")
    names = [f"a{i}" for i in range(20)]
    many = [asyncio.create_task(pool.run("a", lambda name=name: gate.work(name))) for name in names]
    await until_begun(gate, 2)
    one = asyncio.create_task(pool.run("b", lambda: gate.work("b")))
    await asyncio.sleep(0)
    gate.let_through()
    await until_begun(gate, 3)
    assert gate.begun == ["a0", "a1", "b"]
    gate.let_through(20)
    assert await asyncio.gather(*many, one) == [*names, "b"]
    assert sorted(gate.begun) == sorted([*names, "b"])
    pool.close()


async def test_who_leaves_gives_up_its_turn_and_its_thread(gate: Gate):
    pool = FairPool(1, "test")
    first, waiting, last = (
        asyncio.create_task(pool.run("a", lambda name=name: gate.work(name))) for name in ("1", "2", "3")
    )
    await until_begun(gate, 1)
    waiting.cancel()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.sleep(0.02)
    assert gate.begun == ["1"]  # its thread is at work until it ends
    gate.let_through(2)
    assert await last == "3"
    assert gate.begun == ["1", "3"]
    pool.close()


async def test_an_error_is_the_callers_and_the_thread_is_free_again():
    pool = FairPool(1, "test")
    with pytest.raises(ZeroDivisionError):
        await pool.run("a", lambda: 1 / 0)
    assert await pool.run("a", lambda: 2) == 2
    pool.close()


async def test_who_waits_too_long_to_render_is_refused(gate: Gate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(off_loop, "PROCESSES", 1)
    monkeypatch.setattr(off_loop, "_LONGEST_TURN", 0.05)
    threads = OffLoop()
    running = asyncio.create_task(threads.of("a").render(gate.work, "running"))
    await until_begun(gate, 1)
    with pytest.raises(RenderingOverloaded):
        await threads.of("b").render(gate.work, "late")
    gate.let_through(2)
    assert await running == "running"
    assert await threads.of("b").render(gate.work, "next") == "next"
    threads.close()


async def test_little_work_is_done_at_once():
    threads = OffLoop()
    assert await threads.of("a").run(10, threading.get_ident) == threading.get_ident()
    assert await threads.of("a").run(100_000, threading.get_ident) != threading.get_ident()
    threads.close()
