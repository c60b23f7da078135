"""A supervised engine process: the real server and wire in a real child, around an engine without JAX."""

import asyncio
import itertools
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from distaff.runtime.request import EngineFailed, NotReady, Request
from distaff.server import exit_codes
from distaff.server.dispatch.event_stream import BufferedStream
from distaff.server.engine_client import EngineState
from distaff.server.engines import engine_process, restart_budget, wire
from distaff.server.engines.engine_group import EngineGroup
from distaff.server.engines.restart_budget import MOST_FAILURES, RestartBudget
from distaff.server.engines.supervisor import EngineSupervisor, GivenUp, Lost, News

from ...patience import patient
from .engine_processes import collect, command, request, until


class Supervised:
    """An engine process, alone in its group."""

    def __init__(self, words: list[str]) -> None:
        self.news: list[News] = []
        self.group = EngineGroup([words], self.news.append)
        self.engine: EngineSupervisor = self.group.replicas[0]

    @property
    def state(self) -> EngineState:
        return self.group.state

    @property
    def pid(self) -> int:
        assert self.engine.pid
        return self.engine.pid

    @property
    def running(self) -> int:
        return self.engine.stats.running

    def submit(self, each: Request) -> BufferedStream:
        return self.group.submit([each])[0]


Start = Callable[[str], Awaitable[Supervised]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts engine processes; each must leave nothing behind."""
    before = set(psutil.Process().children(recursive=True))
    started: list[Supervised] = []

    async def begin(mode: str) -> Supervised:
        started.append(Supervised(command(mode)))
        await started[-1].group.start()
        return started[-1]

    yield begin
    for engine in started:
        await engine.group.stop()
    assert not set(psutil.Process().children(recursive=True)) - before


async def ready(engine: Supervised) -> Supervised:
    await until(lambda: engine.state == "ready")
    return engine


async def test_a_request_is_heard_to_its_end(start: Start):
    engine = await start("ready")
    assert engine.state == "loading"
    with pytest.raises(NotReady):
        engine.submit(request("a"))
    await ready(engine)
    assert engine.group.info is not None and engine.group.info.slots == 4
    events = await collect(engine.submit(request("a", max_tokens=3)))
    assert [(event.token, event.finish) for event in events] == [(7, None), (7, None), (7, "length")]
    kinds = [type(news).__name__ for news in engine.news]
    assert kinds == ["Progress", "Located", "Ready"]


async def test_an_abort_reaches_the_engine_and_ends_the_iteration(start: Start):
    engine = await ready(await start("ready"))
    stream = engine.submit(request("a"))
    reading = asyncio.create_task(collect(stream))
    await until(lambda: engine.running == 1)
    stream.abort()
    stream.abort()
    assert await asyncio.wait_for(reading, 1) is not None
    await until(lambda: engine.running == 0, 3)


async def test_a_request_that_the_engine_refuses_ends_with_the_reason(start: Start):
    engine = await ready(await start("refuse"))
    (event,) = await collect(engine.submit(request("a")))
    assert (event.finish, event.error) == ("error", "no")


async def test_after_sigkill_the_engine_comes_back_and_streams_go_on(start: Start):
    """Each of them to its end, with all of its tokens and no other; who comes meanwhile waits for it."""
    engine = await ready(await start("ready"))
    asked = [request(str(i), max_tokens=200, token=i) for i in range(6)]
    streams = [asyncio.create_task(collect(engine.submit(each))) for each in asked]
    await until(lambda: engine.running == 4)
    first = engine.pid
    await asyncio.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    await until(lambda: engine.state == "restarting", patient(1.0))
    with pytest.raises(NotReady):
        engine.group.profile(True)
    (new,) = engine.group.submit([request("b", max_tokens=5, token=9)])
    await until(lambda: engine.group.queued[0] == 7, patient(1.0))  # once it is known how the engine ended
    assert [event.token for event in await collect(new)] == [9] * 5
    for i, events in enumerate(await asyncio.gather(*streams)):
        assert [event.token for event in events] == [i] * 200
        assert [event.finish for event in events] == [None] * 199 + ["length"]
    assert engine.pid != first and engine.group.moved["engine_lost"] == 4


def shorten(monkeypatch: pytest.MonkeyPatch, silence: float) -> None:
    """An engine whose loop hangs stops its heartbeats after 0.5 s, and counts as dead `silence` s later."""
    monkeypatch.setattr(engine_process, "SILENCE_SECONDS", silence)
    monkeypatch.setenv("HEARTBEAT_SECONDS", "0.2")
    monkeypatch.setenv("PATIENCE_SECONDS", "0.5")


async def lost_by(sent: signal.Signals) -> Lost:
    """What is known of an engine's death by a signal."""
    news: list[News] = []
    engine = EngineSupervisor(command("ready"), news.append, lambda events: None)
    await engine.start()
    try:
        await until(lambda: engine.state == "ready")
        os.kill(engine.pid or 0, sent)
        await until(lambda: any(isinstance(each, Lost) for each in news), patient(5.0))
    finally:
        await engine.stop()
    return next(each for each in news if isinstance(each, Lost))


@pytest.mark.parametrize(
    ("sent", "killed"), [(signal.SIGKILL, True), (signal.SIGABRT, False), (signal.SIGSTOP, False)]
)
async def test_what_ended_a_process_is_known(
    monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, killed: bool
):
    """Somebody else's SIGKILL blames nobody; a crash, and a hang that we ended, may be a sequence's fault."""
    shorten(monkeypatch, silence=1.0)
    assert await lost_by(sent) == Lost(killed)


async def test_a_kill_for_want_of_memory_is_nobody_elses(monkeypatch: pytest.MonkeyPatch):
    kills = itertools.count()
    monkeypatch.setattr(engine_process, "oom_kills", lambda: next(kills))
    assert await lost_by(signal.SIGKILL) == Lost(killed=False)


async def test_a_stopped_process_is_noticed_within_ten_seconds(start: Start):
    engine = await ready(await start("ready"))
    stream = asyncio.create_task(collect(engine.submit(request("a", max_tokens=30))))
    await until(lambda: engine.running == 1)
    first = engine.pid
    os.kill(first, signal.SIGSTOP)
    noticed = await until(lambda: engine.state == "restarting", 12)
    assert noticed <= 10.0
    assert len(await stream) == 30
    assert not psutil.pid_exists(first)


async def test_a_loop_that_no_longer_turns_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch):
    """The process lives and its threads run; only the engine's own loop hangs."""
    shorten(monkeypatch, silence=1.0)
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    engine = await ready(await start("hang"))
    with pytest.raises(EngineFailed):  # of which three engines have died, one after the other
        await asyncio.wait_for(collect(engine.submit(request("a"))), 30)
    assert engine.state in ("restarting", "stopped")


async def test_a_loop_that_ends_takes_the_process_with_it(start: Start):
    engine = await ready(await start("die"))
    stream = engine.submit(request("a"))
    await until(lambda: engine.state == "restarting", 2)
    stream.abort()


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
    monkeypatch.setattr(engine_process, "SILENCE_SECONDS", 60.0)
    engine = await start("mute")
    await until(lambda: "the engine process ended with exit code 70" in caplog.text)
    await engine.group.stop()


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
    assert not slow.ended
    running = engine.submit(request("running"))
    await until(lambda: engine.running == 1)
    running.abort()
    await until(lambda: engine.running == 0, 3)


async def test_an_event_too_long_for_a_frame_fails_its_request_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LONGEST_FRAME", "2000")
    engine = await ready(await start("long"))
    first = engine.pid
    short = asyncio.create_task(collect(engine.submit(request("short", max_tokens=30))))
    (event,) = await collect(engine.submit(request("long")))
    assert event.finish == "error" and event.error and "the most is 2000" in event.error
    assert (event.device_seconds, event.page_seconds) == (2.5, 7.0)
    assert len(await short) == 30
    assert (engine.pid, engine.running) == (first, 0)


async def test_news_that_cannot_be_taken_in_end_the_engine_not_the_supervision(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    engine = await ready(await start("ready"))
    first = engine.pid
    monkeypatch.setattr(engine.engine, "_on_events", lambda events: 1 / 0)
    stream = asyncio.create_task(collect(engine.submit(request("a", max_tokens=3))))
    await until(lambda: engine.state == "restarting")
    monkeypatch.undo()
    assert len(await stream) == 3
    assert engine.pid != first and "ZeroDivisionError" in caplog.text


async def test_supervision_that_fails_is_the_end_and_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    engine = await ready(await start("ready"))
    stream, pid = engine.submit(request("a")), engine.pid
    monkeypatch.setattr(engine.engine._budget, "pause", lambda worked: 1 / 0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineFailed):
        await collect(stream)
    await until(lambda: engine.state == "stopped")
    given_up = engine.news[-1]
    assert isinstance(given_up, GivenUp) and given_up.exit_code == exit_codes.ENGINE_LOST
    assert "ZeroDivisionError" in given_up.message and "Traceback" in caplog.text


async def test_a_pause_of_our_own_is_not_held_against_the_engine(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    """As if the machine slept: both processes stand still, and no heartbeat waits to be read."""
    shorten(monkeypatch, silence=2.0)
    engine = await ready(await start("ready"))
    first = engine.pid
    os.kill(first, signal.SIGSTOP)
    await asyncio.sleep(0.6)  # until the last heartbeats are read
    time.sleep(3.0)  # the pause itself
    os.kill(first, signal.SIGCONT)
    await asyncio.sleep(1.5)  # in which the process is looked at six times
    assert (engine.state, engine.pid) == ("ready", first)


async def test_kills_by_another_program_do_not_use_up_the_restarts(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    """Not even of an engine that has finished no request since its start."""
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    engine = await ready(await start("ready"))
    for _ in range(MOST_FAILURES + 1):
        killed = engine.pid
        os.kill(killed, signal.SIGKILL)
        await until(lambda killed=killed: engine.state == "ready" and engine.pid not in (None, killed), 10)


async def test_a_crash_loop_is_given_up_at_the_third_failure(start: Start):
    engine = await start("crash")
    took = await until(lambda: engine.state == "stopped", 15)
    assert 3.0 <= took < patient(4.0)  # pauses of 1 s and 2 s
    last = engine.news[-1]
    assert isinstance(last, GivenUp)
    assert last.exit_code == exit_codes.ENGINE_LOST
    assert "exit code 3" in last.message


async def test_what_cannot_be_helped_is_not_tried_again(start: Start):
    engine = await start("fatal")
    await until(lambda: engine.state == "stopped", 5)
    assert engine.news[-1] == GivenUp("model.safetensors: damaged", 65)


async def test_an_engine_that_has_served_is_tried_again_whatever_it_says(
    start: Start, caplog: pytest.LogCaptureFixture
):
    """A checkpoint that is being replaced, memory that is taken for a moment: the words may not last."""
    engine = await ready(await start("ready"))
    modes = engine.engine._command
    assert isinstance(modes, list)
    modes[-1] = "fatal"
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: "failed: model.safetensors: damaged; the next one starts in 2 s" in caplog.text)
    modes[-1] = "ready"
    await ready(engine)
    assert not [news for news in engine.news if isinstance(news, GivenUp)]
    engine.engine._budget, modes[-1] = RestartBudget(most=2), "fatal"
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.state == "stopped")
    assert engine.news[-1] == GivenUp("model.safetensors: damaged", 65)


async def test_a_program_that_cannot_be_started_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    news: list[News] = []
    engine = EngineSupervisor(["/nonexistent/python"], news.append, lambda events: None)
    await engine.start()
    await until(lambda: engine.state == "stopped", 6)
    assert isinstance(news[-1], GivenUp) and "cannot be started" in news[-1].message
    await engine.stop()


async def test_draining_lets_short_streams_finish_and_fails_the_rest(start: Start):
    engine = await ready(await start("ready"))
    short = asyncio.create_task(collect(engine.submit(request("short", max_tokens=20))))
    long = asyncio.create_task(collect(engine.submit(request("long"))))
    await until(lambda: engine.running == 2)
    draining = asyncio.create_task(engine.group.drain(1.0))
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
    await until(lambda: any(isinstance(news, wire.Located) for news in engine.news))
    pid, began = engine.pid, time.monotonic()
    await engine.group.stop()
    await engine.group.stop()
    assert time.monotonic() - began < patient(2.0)
    assert pid and not psutil.pid_exists(pid)
    assert engine.state == "stopped"


async def test_signals_to_all_processes_are_left_to_us(start: Start):
    """Blocked in every thread from the first on, so no library handles them; one waits for SIGTERM."""
    engine = await ready(await start("ready"))
    assert engine.pid
    open_to: list[int] = []
    for thread in psutil.Process(engine.pid).threads():
        status = Path(f"/proc/{engine.pid}/task/{thread.id}/status").read_text()
        (mask,) = re.findall(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)
        open_to += [n for n in (signal.SIGINT, signal.SIGTERM) if not int(mask, 16) & 1 << n - 1]
    assert open_to == [signal.SIGTERM]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    os.kill(engine.pid, signal.SIGINT)
    assert len(await collect(engine.submit(request("a", max_tokens=3)))) == 3


async def test_sigterm_replaces_an_engine_that_has_finished_what_it_began(start: Start):
    engine = await ready(await start("ready"))
    first = engine.pid
    begun = asyncio.create_task(collect(engine.submit(request("begun", max_tokens=40))))
    await until(lambda: engine.running == 1)
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(collect(engine.submit(request(str(i), max_tokens=40)))) for i in range(5)]
    os.kill(engine.pid, signal.SIGTERM)
    await until(lambda: engine.state == "draining")
    with pytest.raises(NotReady):
        engine.submit(request("new"))
    assert len(await begun) == 40 and engine.pid == first
    await ready(engine)
    assert engine.pid != first
    assert [len(events) for events in await asyncio.gather(*waiting)] == [40] * 5
    assert engine.group.moved["engine_lost"] == 0


async def test_sigterm_to_an_engine_while_all_are_drained_changes_nothing(start: Start):
    """A service manager may send it to all processes at once."""
    engine = await ready(await start("ready"))
    stream = asyncio.create_task(collect(engine.submit(request("a", max_tokens=40))))
    await until(lambda: engine.running == 1)
    first = engine.pid
    os.kill(first, signal.SIGTERM)
    await until(lambda: engine.engine.state == "draining")
    await engine.group.drain(5.0)
    assert len(await stream) == 40 and engine.pid == first


async def test_a_child_that_will_not_stop_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_process, "_STOP_SECONDS", 0.3)
    engine = await ready(await start("stubborn"))
    pid = engine.pid
    await engine.group.stop()
    assert pid and not psutil.pid_exists(pid)


async def test_stopping_during_the_pause_before_a_restart(start: Start):
    engine = await start("crash")
    await until(lambda: engine.state == "restarting" and engine.engine.pid is None)
    await asyncio.wait_for(engine.group.stop(), 1)


def test_failures_after_good_work_are_forgotten_and_cost_no_pause():
    moments = iter((0.0, 10.0, 20.0, 22.0, 30.0, 30.0, 30.0))
    budget = RestartBudget(lambda: next(moments))
    worked = (False, True, True, True, False, False, False)
    assert [budget.pause(worked=each) for each in worked] == [1.0, 0.0, 0.0, 1.0, 1.0, 2.0, None]
    assert RestartBudget(most=1).pause(worked=True) is None


def test_failures_long_ago_are_forgotten():
    moments = iter((0.0, 10.0, 301.0, 400.0, 650.0, 651.0))
    budget = RestartBudget(lambda: next(moments))
    assert [budget.pause() for _ in range(6)] == [1.0, 2.0, 2.0, 2.0, 2.0, None]


async def test_a_process_that_started_early_is_taken_over_once(start: Start):
    """Its frames from before are read; after its death another one is started."""
    engine_process.start_early([command("ready")])
    (early,) = [process.pid for process, *_ in engine_process._early.values()]
    supervised = await start("ready")
    await until(lambda: supervised.state == "ready")
    assert supervised.pid == early and not engine_process._early
    assert any(isinstance(news, wire.Progress) for news in supervised.news)
    os.kill(early, signal.SIGKILL)
    await until(lambda: supervised.state == "ready" and supervised.engine.pid not in (None, early))
