"""Several engine processes that are one: the real group, server and wire, real children, no JAX."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest

from distaff.runtime.request import EngineFailed, EngineStats, NotReady, Overloaded, Request
from distaff.server import exit_codes
from distaff.server.dispatch.admission import Admission
from distaff.server.dispatch.event_stream import BufferedStream
from distaff.server.dispatch.routing import BLOCK
from distaff.server.engines import engine_process, restart_budget, wire
from distaff.server.engines.engine_group import EngineGroup
from distaff.server.engines.supervisor import GivenUp, News

from ...patience import patient
from .engine_processes import collect, command, request, until


class Group:
    """A running group, what it told, and the command lines that its next processes will have."""

    def __init__(self, modes: tuple[str, ...], most_under_way: int | None) -> None:
        self.commands = [command(mode) for mode in modes]
        self.news: list[News] = []
        self.engines = EngineGroup(self.commands, self.news.append, admission=Admission(most_under_way))

    @property
    def states(self) -> list[str]:
        return [engine.state for engine in self.engines.replicas]

    @property
    def loads(self) -> list[int]:
        return [len(handle.open) for handle in self.engines._handles]

    def submit(self, each: Request) -> BufferedStream:
        return self.engines.submit([each])[0]

    async def all_ready(self) -> "Group":
        await until(lambda: set(self.states) == {"ready"})
        return self

    def kill(self, number: int) -> None:
        pid = self.engines.replicas[number].pid
        assert pid
        os.kill(pid, signal.SIGKILL)


Start = Callable[..., Awaitable[Group]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts groups; each must leave nothing behind."""
    before = set(psutil.Process().children(recursive=True))
    started: list[Group] = []

    async def begin(*modes: str, most_under_way: int | None = None) -> Group:
        started.append(Group(modes, most_under_way))
        await started[-1].engines.start()
        return started[-1]

    yield begin
    for group in started:
        await group.engines.stop()
    assert not set(psutil.Process().children(recursive=True)) - before


async def test_one_killed_replica_is_restarted_while_all_streams_continue(start: Start):
    group = await (await start("ready", "ready")).all_ready()
    streams = [group.submit(request(str(i), max_tokens=100, token=i)) for i in range(4)]
    readers = [asyncio.create_task(collect(stream)) for stream in streams]
    assert group.loads == [2, 2]  # by load, in turn: 0 and 2 on the first
    await until(lambda: group.engines.stats.running == 4)
    await asyncio.sleep(0.2)
    group.kill(1)
    await until(lambda: group.loads == [4, 0], patient(1.0))
    assert group.engines.state == "ready"
    assert len(await collect(group.submit(request("new", max_tokens=3)))) == 3
    for token, reader in enumerate(readers):
        events = await reader
        assert [event.token for event in events] == [token] * 100
        assert [event.finish for event in events] == [None] * 99 + ["length"]
    await group.all_ready()
    assert group.loads == [0, 0]
    assert not [news for news in group.news if isinstance(news, GivenUp)]


async def test_equal_prefixes_go_to_one_replica_until_its_lead_is_too_large(start: Start):
    """4 slots: a lead of one stream is allowed."""
    group = await (await start("ready", "ready")).all_ready()
    for token in (3, 5, 3, 5, 5, 3):
        stream = group.submit(request(str(token), prompt=2 * BLOCK, token=token))
        assert group.loads == ([1, 0] if token == 3 else [0, 1])
        stream.abort()
    held = [group.submit(request(str(i), prompt=2 * BLOCK, token=3)) for i in range(3)]
    assert group.loads == [2, 1]
    for stream in held:
        stream.abort()


async def test_a_restarted_replica_has_no_prefixes(start: Start):
    group = await (await start("ready", "ready")).all_ready()
    group.submit(request("a", prompt=BLOCK)).abort()
    group.kill(0)
    await until(lambda: group.states[0] == "restarting")
    await group.all_ready()
    group.submit(request("b", prompt=BLOCK))
    assert group.loads == [0, 1]


async def test_a_single_engine_logs_when_it_is_ready_again(start: Start, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="distaff")
    group = await (await start("ready")).all_ready()
    assert "ready" not in caplog.text
    group.kill(0)
    await until(lambda: "the engine is ready again" in caplog.text)


async def test_it_serves_as_soon_as_one_replica_is_ready(start: Start):
    group = await start("late", "ready")
    assert (group.engines.state, group.states) == ("loading", ["loading", "starting"])
    with pytest.raises(NotReady, match="the engine is loading"):
        group.submit(request("early"))
    await until(lambda: group.states == ["loading", "ready"])
    assert group.engines.state == "ready"
    events = [await collect(group.submit(request(str(i), max_tokens=2))) for i in range(3)]
    assert [len(each) for each in events] == [2, 2, 2]
    await group.all_ready()
    assert group.engines.info and group.engines.info.slots == 8 and group.engines.info.context == 4096


async def test_the_other_replicas_start_once_the_checkpoint_is_located(start: Start):
    group = await start("late", "late", "late")
    assert group.states == ["loading", "starting", "starting"]
    await until(lambda: any(isinstance(news, wire.Located) for news in group.news))
    await group.all_ready()
    progress = [news for news in group.news if isinstance(news, wire.Progress)]
    assert progress == [wire.Progress("load", 1, 1)]  # the first replica's alone


async def test_a_crash_looping_replica_is_given_up_alone(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    group = await start("ready", "crash")
    await until(lambda: group.states == ["ready", "stopped"], 15)
    assert "replica 1 ended with exit code 3; it failed too often and is given up; 1 of 2" in caplog.text
    assert group.engines.state == "ready"
    assert group.engines.heartbeat_age < 5
    assert len(await collect(group.submit(request("a", max_tokens=3)))) == 3
    assert not [news for news in group.news if isinstance(news, GivenUp)]
    group.commands[0][-1] = "crash"
    group.kill(0)
    await until(lambda: group.engines.state == "stopped", 15)
    assert isinstance(group.news[-1], GivenUp)
    assert group.news[-1].exit_code == exit_codes.ENGINE_LOST


async def test_a_first_replica_that_cannot_be_started_does_not_stop_the_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    group = await start("ready", "ready")
    group.commands[0][0] = "/nonexistent/python"
    await until(lambda: group.states == ["stopped", "ready"], 15)
    assert len(await collect(group.submit(request("a", max_tokens=3)))) == 3


@pytest.mark.parametrize("modes", [("fatal", "ready"), ("ready", "fatal"), ("late", "fatal")])
async def test_a_replica_that_cannot_come_up_ends_all(start: Start, modes: tuple[str, str]):
    group = await start(*modes)
    await until(lambda: any(isinstance(news, GivenUp) for news in group.news), 5)
    assert group.news[-1] == GivenUp("model.safetensors: damaged", 65)


async def test_a_replica_that_was_ready_before_is_given_up_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    """A checkpoint that is damaged under a running server, and stays so."""
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    group = await (await start("ready", "ready")).all_ready()
    group.commands[0][-1] = "fatal"
    group.kill(0)
    await until(lambda: group.states == ["stopped", "ready"], 15)
    assert not [news for news in group.news if isinstance(news, GivenUp)]


async def test_replicas_that_would_differ_are_refused(start: Start):
    group = await start("ready", "other")
    await until(lambda: isinstance(group.news[-1] if group.news else None, GivenUp), 5)
    given_up = group.news[-1]
    assert isinstance(given_up, GivenUp) and given_up.exit_code == exit_codes.REFUSED_SETTING
    assert "0123456789" in given_up.message and "9876543210" in given_up.message


async def test_a_replaced_model_is_never_served_together_with_the_old_one(start: Start):
    group = await (await start("ready", "ready")).all_ready()
    group.commands[1][-1] = "other"
    group.kill(1)
    await until(lambda: group.states == ["ready", "stopped"], 5)
    assert group.engines.info and group.engines.info.fingerprint == "0123456789"
    streams = [group.submit(request(str(i))) for i in range(3)]
    assert group.loads == [3, 0]
    for stream in streams:
        stream.abort()


async def test_all_replicas_share_one_queue(start: Start):
    """4 slots each: what one has no room for goes to the other as soon as that is ready."""
    group = await start("late", "ready")
    await until(lambda: group.states[1] == "ready")
    streams = [group.submit(request(str(i))) for i in range(10)]
    assert (group.loads, group.engines.queued[0]) == ([0, 4], 6)
    await group.all_ready()
    assert (group.loads, group.engines.queued[0]) == ([4, 4], 2)
    for stream in streams:
        stream.abort()


async def test_sigterm_to_one_replica_moves_the_requests_that_it_has_not_begun(start: Start):
    group = await (await start("ready", "compile")).all_ready()
    streams = [
        group.submit(request(str(i), max_tokens=30, grammar="slow" if i % 2 else None)) for i in range(4)
    ]
    await until(lambda: group.engines.stats.running == 2)
    modes = group.engines.replicas[1]._command
    assert isinstance(modes, list)
    modes[-1] = "ready"  # the next process compiles any grammar
    os.kill(group.engines.replicas[1].pid or 0, signal.SIGTERM)
    await until(lambda: group.loads == [4, 0], patient(1.0))
    assert group.engines.state == "ready" and group.engines.moved["draining"] == 2
    assert [len(await collect(stream)) for stream in streams] == [30] * 4
    await until(lambda: group.states == ["ready", "ready"])


async def test_max_concurrent_counts_running_streams_of_all_replicas(start: Start):
    """Each that ends, however it ends, makes room for one."""
    group = await (await start("ready", "ready", most_under_way=3)).all_ready()
    streams = [group.submit(request(str(i))) for i in range(3)]
    await until(lambda: group.engines.stats.running == 3)
    with pytest.raises(Overloaded, match="3 requests are in progress; the most is 3"):
        group.submit(request("one too many"))
    streams[0].abort()
    last = group.submit(request("last", max_tokens=1))
    assert (await collect(last))[-1].finish == "length"
    group.kill(group.loads.index(max(group.loads)))
    await until(lambda: "restarting" in group.states)
    group.submit(request("a third"))  # those of the engine that was lost are still under way
    with pytest.raises(Overloaded, match="3 requests are in progress"):
        group.submit(request("one too many again"))


async def test_statistics_are_sums_and_a_dead_replica_runs_nothing(start: Start):
    group = await (await start("ready", "ready")).all_ready()
    for i in range(3):
        group.submit(request(str(i)))
    await until(lambda: group.engines.stats.running == 3)
    each = [engine.stats for engine in group.engines.replicas]
    assert sorted(stats.running for stats in each) == [1, 2]
    assert group.engines.stats.steps == sum(stats.steps for stats in each)
    group.kill(0)
    await until(lambda: group.states[0] == "restarting")
    assert group.engines.replicas[0].stats == EngineStats()


async def test_the_group_is_alive_as_long_as_one_replica_is(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_process, "SILENCE_SECONDS", 60.0)
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    monkeypatch.setenv("HEARTBEAT_SECONDS", "0.2")
    group = await (await start("ready", "ready")).all_ready()
    pids = [engine.pid or 0 for engine in group.engines.replicas]
    os.kill(pids[0], signal.SIGSTOP)
    await until(lambda: group.engines.replicas[0].heartbeat_age > 1.2)
    assert group.engines.heartbeat_age < 0.8
    os.kill(pids[1], signal.SIGSTOP)
    await until(lambda: group.engines.heartbeat_age > 1.2)
    group.commands[0][-1] = "fatal"
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: group.states[0] == "stopped")
    assert group.engines.heartbeat_age > 1.2  # a replica that is given up does not count
    os.kill(pids[1], signal.SIGKILL)


async def test_draining_waits_for_short_streams_of_every_replica(start: Start):
    group = await (await start("ready", "ready")).all_ready()
    short = [asyncio.create_task(collect(group.submit(request(f"s{i}", max_tokens=20)))) for i in "ab"]
    long = [asyncio.create_task(collect(group.submit(request(f"l{i}")))) for i in "ab"]
    await until(lambda: group.engines.stats.running == 4)
    assert group.loads == [2, 2]
    draining = asyncio.create_task(group.engines.drain(1.0))
    await until(lambda: group.engines.state == "draining")
    with pytest.raises(NotReady):
        group.submit(request("new"))
    await draining
    assert [len(await reader) for reader in short] == [20, 20]
    for reader in long:
        with pytest.raises(EngineFailed, match="shutting down"):
            await reader


@pytest.mark.parametrize("modes", [("load", "ready"), ("ready", "load"), ("crash", "ready")])
async def test_stopping_is_quick_whatever_the_replicas_do(
    start: Start, monkeypatch: pytest.MonkeyPatch, modes: tuple[str, str]
):
    monkeypatch.setattr(restart_budget, "PAUSE_SECONDS", 0.1)
    group = await start(*modes)
    await until(lambda: "ready" in group.states)
    began = time.monotonic()
    await group.engines.stop()
    assert time.monotonic() - began < patient(2.0)
    assert (group.engines.state, group.states) == ("stopped", ["stopped", "stopped"])


async def test_nothing_is_started_by_a_late_message_after_the_end(start: Start):
    """The location of the checkpoint can arrive after the server was asked to end."""
    group = await start("load", "ready")
    await group.engines.stop()
    group.engines._on_replica_news(0, wire.Located("/late"))
    await asyncio.sleep(0.2)
    assert (group.engines.state, [engine.pid for engine in group.engines.replicas]) == (
        "stopped",
        [None, None],
    )
