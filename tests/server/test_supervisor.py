"""A supervised engine process: the real pump and wire in a real child, around an engine without JAX."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from distaff.runtime.request import EngineFailed, NotReady, Overloaded
from distaff.server import child, exit_codes, wire
from distaff.server.admission import Admission
from distaff.server.engine_client import EngineInfo
from distaff.server.restart_budget import RestartBudget
from distaff.server.supervisor import EngineProcess, GivenUp, News

from ..patience import patient
from .engine_processes import collect, command, request, until

Start = Callable[[str], Awaitable[EngineProcess]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts engine processes; each must leave nothing behind."""
    started: list[EngineProcess] = []

    async def begin(mode: str) -> EngineProcess:
        news: list[News] = []
        engine = EngineProcess(command(mode), news.append)
        engine.news = news  # type: ignore[attr-defined]  # for the tests to look at
        started.append(engine)
        await engine.start()
        return engine

    yield begin
    for engine in started:
        await engine.stop()
    assert not psutil.Process().children(recursive=True)


async def ready(engine: EngineProcess) -> EngineProcess:
    await until(lambda: engine.state == "ready")
    return engine


def news_of(engine: EngineProcess) -> list[News]:
    return engine.news  # type: ignore[attr-defined]


async def test_a_request_is_heard_to_its_end(start: Start):
    engine = await start("ready")
    assert engine.state == "loading"
    with pytest.raises(NotReady):
        engine.submit(request("a"))
    await ready(engine)
    assert engine.info is not None and engine.info.slots == 4
    events = await collect(engine.submit(request("a", max_tokens=3)))
    assert [(event.token, event.finish) for event in events] == [(7, None), (7, None), (7, "length")]
    kinds = [type(news).__name__ for news in news_of(engine)]
    assert kinds == ["Progress", "Located", "Ready"]


async def test_an_abort_reaches_the_engine_and_ends_the_iteration(start: Start):
    engine = await ready(await start("ready"))
    stream = engine.submit(request("a"))
    reading = asyncio.create_task(collect(stream))
    await until(lambda: engine.stats.running == 1)
    stream.abort()
    stream.abort()
    assert await asyncio.wait_for(reading, 1) is not None
    await until(lambda: engine.stats.running == 0, 3)


async def test_a_request_that_the_engine_refuses_ends_with_the_reason(start: Start):
    engine = await ready(await start("refuse"))
    (event,) = await collect(engine.submit(request("a")))
    assert (event.finish, event.error) == ("error", "no")


async def test_sigkill_fails_streams_within_a_second_and_the_engine_comes_back(start: Start):
    engine = await ready(await start("ready"))
    streams = [asyncio.create_task(collect(engine.submit(request(str(i))))) for i in range(4)]
    await until(lambda: engine.stats.running == 4)
    first = engine.pid
    assert first
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    outcomes = await asyncio.gather(*streams, return_exceptions=True)
    assert time.monotonic() - began < patient(1.0)
    assert all(isinstance(outcome, EngineFailed) for outcome in outcomes)
    assert engine.state == "restarting"
    with pytest.raises(NotReady):
        engine.submit(request("b"))
    await ready(engine)
    assert engine.pid != first
    assert len(await collect(engine.submit(request("c", max_tokens=2)))) == 2


async def test_a_stopped_process_is_noticed_within_ten_seconds(start: Start):
    engine = await ready(await start("ready"))
    stream = asyncio.create_task(collect(engine.submit(request("a"))))
    await until(lambda: engine.stats.running == 1)
    first = engine.pid
    assert first
    os.kill(first, signal.SIGSTOP)
    noticed = await until(lambda: engine.state == "restarting", 12)
    assert noticed <= 10.0
    with pytest.raises(EngineFailed):
        await stream
    await ready(engine)
    assert not psutil.pid_exists(first)


async def test_a_loop_that_no_longer_turns_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch):
    """The process lives and its threads run; only the engine's own loop hangs."""
    monkeypatch.setattr(child, "SILENCE_SECONDS", 2.0)
    engine = await ready(await start("hang"))
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(collect(engine.submit(request("a"))), 10)
    await ready(engine)


async def test_a_loop_that_ends_takes_the_process_with_it(start: Start):
    engine = await ready(await start("die"))
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(collect(engine.submit(request("a"))), 2)
    assert engine.state == "restarting"


async def test_a_deaf_process_ends_and_is_replaced(start: Start, capfd: pytest.CaptureFixture[str]):
    """Whatever its reading thread trips over: a process that hears nothing must not go on beating."""
    engine = await ready(await start("deaf"))
    stream, first = engine.submit(request("a")), engine.pid
    stream.abort()
    await until(lambda: engine.state == "restarting", 2)
    await ready(engine)
    assert engine.pid != first
    logged = capfd.readouterr().err
    assert "the thread channel_read failed; the process ends" in logged and "KeyError: 'a'" in logged


async def test_a_process_whose_heartbeat_fails_ends_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(child, "SILENCE_SECONDS", 60.0)
    engine = await start("mute")
    await until(lambda: "the engine process ended with exit code 70" in caplog.text)
    await engine.stop()


async def test_a_panic_over_one_grammar_fails_that_request_alone(start: Start):
    engine = await ready(await start("panic"))
    first = engine.pid
    (event,) = await collect(engine.submit(request("a", grammar="start: /x/")))
    assert (event.finish, event.error) == ("error", "unexpected Panic")
    assert len(await collect(engine.submit(request("b", max_tokens=2)))) == 2
    assert engine.pid == first


async def test_nobody_waits_for_a_grammar_of_somebody_elses(start: Start):
    engine = await ready(await start("compile"))
    slow = engine.submit(request("slow", grammar="slow"))
    others = [request("plain", max_tokens=2), request("quick", max_tokens=2, grammar="quick")]
    for each in others:
        assert len(await asyncio.wait_for(collect(engine.submit(each)), 5)) == 2
    assert not slow.started
    running = engine.submit(request("running"))
    await until(lambda: engine.stats.running == 1)
    running.abort()
    await until(lambda: engine.stats.running == 0, 3)


async def test_an_event_too_long_for_a_frame_fails_its_request_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LONGEST_FRAME", "2000")
    engine = await ready(await start("long"))
    first = engine.pid
    short = asyncio.create_task(collect(engine.submit(request("short", max_tokens=30))))
    (event,) = await collect(engine.submit(request("long")))
    assert event.finish == "error" and event.error and "the most is 2000" in event.error
    assert len(await short) == 30
    assert (engine.pid, engine.stats.running) == (first, 0)


async def test_news_that_cannot_be_taken_in_end_the_engine_not_the_supervision(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    engine = await ready(await start("ready"))
    first = engine.pid
    monkeypatch.setattr(engine, "_dispatch", lambda event: 1 / 0)
    with pytest.raises(EngineFailed):
        await collect(engine.submit(request("a")))
    monkeypatch.undo()
    await ready(engine)
    assert engine.pid != first and "ZeroDivisionError" in caplog.text


async def test_supervision_that_fails_is_the_end_and_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    engine = await ready(await start("ready"))
    stream, pid = engine.submit(request("a")), engine.pid
    assert pid
    monkeypatch.setattr(engine._budget, "pause", lambda: 1 / 0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineFailed):
        await collect(stream)
    await until(lambda: engine.state == "stopped")
    given_up = news_of(engine)[-1]
    assert isinstance(given_up, GivenUp) and given_up.exit_code == exit_codes.ENGINE_LOST
    assert "ZeroDivisionError" in given_up.message and "Traceback" in caplog.text


async def test_a_pause_of_our_own_is_not_held_against_the_engine(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(child, "SILENCE_SECONDS", 2.0)
    engine = await ready(await start("ready"))
    first = engine.pid
    time.sleep(3.0)
    await asyncio.sleep(1.5)
    assert (engine.state, engine.pid) == ("ready", first)


async def test_a_crash_loop_is_given_up_at_the_third_failure(start: Start):
    engine = await start("crash")
    took = await until(lambda: engine.state == "stopped", 15)
    assert 3.0 <= took < patient(4.0)  # pauses of 1 s and 2 s
    last = news_of(engine)[-1]
    assert isinstance(last, GivenUp)
    assert last.exit_code == exit_codes.ENGINE_LOST
    assert "exit code 3" in last.message


async def test_what_cannot_be_helped_is_not_tried_again(start: Start):
    engine = await start("fatal")
    await until(lambda: engine.state == "stopped", 5)
    assert news_of(engine)[-1] == GivenUp("model.safetensors: damaged", 65)


async def test_an_engine_that_has_served_is_tried_again_whatever_it_says(
    start: Start, caplog: pytest.LogCaptureFixture
):
    """A checkpoint that is being replaced, memory that is taken for a moment: the words may not last."""
    engine = await ready(await start("ready"))
    modes = engine._command
    assert isinstance(modes, list) and engine.pid
    modes[-1] = "fatal"
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: "failed: model.safetensors: damaged; the next one starts in 2 s" in caplog.text)
    modes[-1] = "ready"
    await ready(engine)
    assert not [news for news in news_of(engine) if isinstance(news, GivenUp)]
    engine._budget, modes[-1] = RestartBudget(most=2), "fatal"
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.state == "stopped")
    assert news_of(engine)[-1] == GivenUp("model.safetensors: damaged", 65)


async def test_a_program_that_cannot_be_started_is_given_up():
    news: list[News] = []
    engine = EngineProcess(["/nonexistent/python"], news.append)
    await engine.start()
    await until(lambda: engine.state == "stopped", 6)
    assert isinstance(news[-1], GivenUp) and "cannot be started" in news[-1].message
    await engine.stop()


async def test_overload_is_answered_at_once(start: Start):
    """4 slots: 32 requests may wait. None has had a token yet, since we never yield to the loop."""
    engine = await ready(await start("ready"))
    streams = [engine.submit(request(str(i))) for i in range(32)]
    with pytest.raises(Overloaded, match="32 requests"):
        engine.submit(request("one too many"))
    await until(lambda: engine.stats.running == 32)
    late = engine.submit(request("now", max_tokens=1))
    assert (await collect(late))[-1].finish == "length"
    for stream in streams:
        stream.abort()


def test_prompt_tokens_are_bounded_too():
    admission = Admission()
    admission.open("engine", EngineInfo(context=100, vocabulary=10, slots=4, fingerprint="0" * 10))
    entered = [request(str(i), prompt=100) for i in range(16)]
    for each in entered:
        admission.enter(each)
    with pytest.raises(Overloaded, match="1600 prompt tokens wait and 1 more"):
        admission.enter(request("x", prompt=1))
    for each in entered:
        admission.leave(each)
    assert (admission.requests, admission.tokens) == (0, 0)


def test_an_operators_bound_is_on_all_that_is_under_way():
    """It stands in place of those on what waits, and what had its first token counts on until its end."""
    admission = Admission(2)
    admission.open("engine", EngineInfo(context=100, vocabulary=10, slots=1, fingerprint="0" * 10))
    one, two = request("1", prompt=5000), request("2", prompt=5000)
    admission.enter(one)
    admission.enter(two)
    admission.leave(one)
    with pytest.raises(Overloaded, match="2 requests are under way; the most is 2"):
        admission.enter(request("3"))
    admission.end()
    admission.enter(request("3"))


async def test_draining_lets_short_streams_finish_and_fails_the_rest(start: Start):
    engine = await ready(await start("ready"))
    short = asyncio.create_task(collect(engine.submit(request("short", max_tokens=20))))
    long = asyncio.create_task(collect(engine.submit(request("long"))))
    await until(lambda: engine.stats.running == 2)
    draining = asyncio.create_task(engine.drain(1.0))
    await asyncio.sleep(0.05)
    assert engine.state == "draining"
    with pytest.raises(NotReady):
        engine.submit(request("new"))
    await draining
    assert len(await short) == 20
    with pytest.raises(EngineFailed, match="shutting down"):
        await long


@pytest.mark.parametrize("mode", ["load", "ready"])
async def test_stopping_is_quick(start: Start, mode: str):
    engine = await start(mode)
    await until(lambda: any(isinstance(news, wire.Located) for news in news_of(engine)))
    pid, began = engine.pid, time.monotonic()
    await engine.stop()
    await engine.stop()
    assert time.monotonic() - began < patient(2.0)
    assert pid and not psutil.pid_exists(pid)
    assert engine.state == "stopped"


async def test_signals_to_all_processes_are_left_to_us(start: Start):
    """Blocked in every thread from the first on, so that no library's handler ever runs."""
    engine = await ready(await start("ready"))
    assert engine.pid
    blocked = 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1
    for thread in psutil.Process(engine.pid).threads():
        status = Path(f"/proc/{engine.pid}/task/{thread.id}/status").read_text()
        (mask,) = re.findall(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)
        assert int(mask, 16) & blocked == blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    os.kill(engine.pid, signal.SIGTERM)
    os.kill(engine.pid, signal.SIGINT)
    assert len(await collect(engine.submit(request("a", max_tokens=3)))) == 3


async def test_a_child_that_will_not_stop_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "_STOP_SECONDS", 0.3)
    engine = await ready(await start("stubborn"))
    pid = engine.pid
    await engine.stop()
    assert pid and not psutil.pid_exists(pid)


async def test_stopping_during_the_pause_before_a_restart(start: Start):
    engine = await start("crash")
    await until(lambda: engine.state == "restarting" and engine.pid is None)
    await asyncio.wait_for(engine.stop(), 1)


def test_failures_long_ago_are_forgotten():
    moments = iter((0.0, 10.0, 301.0, 400.0, 650.0, 651.0))
    budget = RestartBudget(lambda: next(moments))
    assert [budget.pause() for _ in range(6)] == [1.0, 2.0, 2.0, 2.0, 2.0, None]
