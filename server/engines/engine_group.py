"""`EngineGroup`: several engine processes, each with its own devices, that act as one engine for the routes.

It decides what the loss of one replica means for the group: its own `EngineSupervisor` restarts it or gives
it up, while the others continue to serve. `dispatcher.py` decides which replica computes which sequence. A
server without replicas is a group of one.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ...runtime.request import EngineFailed, EngineStats, NotReady, Request, TokenEvent
from .. import exit_codes
from ..dispatch.admission import Admission
from ..dispatch.dispatcher import Dispatcher
from ..dispatch.engine_handle import EngineHandle
from ..dispatch.event_stream import BufferedStream
from ..engine_client import EngineInfo, EngineState, MoveCause, ShutDown
from ..process.vital import start_task
from . import wire
from .engine_process import open_page_files
from .supervisor import EngineSupervisor, GivenUp, Lost, News

log = logging.getLogger(__name__)

_DRAIN_TICK_SECONDS = 0.05
_LEAVE_SECONDS = 60.0
"""How long a replica that received SIGTERM may continue its running sequences."""

_STATES: tuple[EngineState, ...] = ("ready", "restarting", "draining", "loading", "starting", "stopped")
"""The group's state is the first of these that is the state of one of its replicas."""


class EngineGroup:
    """An `EngineClient` over one or more supervised child processes.

    Call every method on the thread of one event loop.

    Attributes:
      replicas: the engines, by number.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        on_news: Callable[[News], None] = lambda news: None,
        restarts: bool = True,
        admission: Admission | None = None,
        most_pause: float = 300.0,
    ) -> None:
        """Starts no process yet.

        Args:
          commands: the command line of each replica's process; see `EngineSupervisor`.
          on_news: called with the progress of starting; must not block. `GivenUp`: all are given up.
          restarts: whether a lost engine is restarted.
          admission: the admission control; None for the default bounds.
          most_pause: the longest time that a sequence waits for an engine after its own was lost, in seconds.
        """
        self._on_news = on_news
        self._proven: set[int] = set()
        self._closing = False
        self._others: asyncio.Task[None] | None = None
        self._page_files = open_page_files(commands)
        self.replicas = [
            EngineSupervisor(
                command,
                functools.partial(self._on_replica_news, number),
                functools.partial(self._receive, number),
                f"the engine process of replica {number}" if len(commands) > 1 else "the engine process",
                restarts,
                self._page_files_of(number),
            )
            for number, command in enumerate(commands)
        ]
        self._handles = [EngineHandle(number, engine) for number, engine in enumerate(self.replicas)]
        self._dispatcher = Dispatcher(
            self._handles, admission or Admission(), time.monotonic, _call_later, most_pause
        )

    @property
    def state(self) -> EngineState:
        if self._closing:
            return "draining" if any(engine.state != "stopped" for engine in self.replicas) else "stopped"
        states = {engine.state for engine in self.replicas}
        return next(state for state in _STATES if state in states)

    @property
    def info(self) -> EngineInfo | None:
        """The combined properties of all replicas that were ever ready; None until one has been ready."""
        known = [engine.info for engine in self.replicas if engine.info]
        if not known:
            return None
        ready = [engine.info for engine in self._ready().values() if engine.info]
        return replace(
            (ready or known)[0],
            context=min(info.context for info in known),
            slots=sum(info.slots for info in known),
        )

    @property
    def stats(self) -> EngineStats:
        """The sum of the newest snapshots."""
        return EngineStats.total([engine.stats for engine in self.replicas])

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last frame from any of the processes; 0.0 while there is no process."""
        ages = [engine.heartbeat_age for engine in self.replicas if engine.pid is not None]
        return min(ages, default=0.0)

    @property
    def ready_in(self) -> float:
        """Seconds until one of them is probably ready."""
        return min(engine.ready_in for engine in self.replicas)

    @property
    def queued(self) -> tuple[int, int]:
        """The queue in front of all of them: the number of sequences and of their tokens."""
        return self._dispatcher.queued

    @property
    def moved(self) -> Mapping[MoveCause, int]:
        """How often a sequence was moved off one of them, by cause."""
        return self._dispatcher.moved

    @property
    def takes(self) -> bool:
        """Whether a replica accepts sequences, or one that did is restarting."""
        return not self._closing and self._dispatcher.takes

    def submit(self, requests: Sequence[Request]) -> list[BufferedStream]:
        """Submits the sequences of a call, all or none; each runs on the first replica that has room.

        Raises:
          NotReady: it accepts none, see `takes`.
          Overloaded: they would wait too long, or there are too many.
        """
        if not self.takes:
            raise NotReady(f"the engine is {self.state}", self.ready_in)
        return self._dispatcher.submit(requests)

    def profile(self, on: bool) -> None:
        """Starts or stops a profile of every replica that is ready. Raises NotReady: none is."""
        if not self._ready():
            raise NotReady(f"the engine is {self.state}", self.ready_in)
        for engine in self._ready().values():
            engine.profile(on)

    async def start(self) -> None:
        """Starts loading; returns at once.

        The first replica starts alone, until the checkpoint is in the cache, from which all can read it.
        """
        await self.replicas[0].start()

    async def drain(self, seconds: float) -> None:
        """Accepts no new requests, waits for running ones until the time is up, and fails the rest."""
        self._closing = True
        for engine in self.replicas:
            engine.resume()
        await _until(lambda: not self._dispatcher.under_way, seconds)
        self._dispatcher.fail_all(ShutDown("the server is shutting down"))

    async def stop(self) -> None:
        """Ends all engines and the processes that they started. Idempotent."""
        self._closing = True
        self._dispatcher.fail_all(ShutDown("the server is shutting down"))
        await asyncio.gather(*(engine.stop() for engine in self.replicas))
        for file in self._page_files:
            file.close()

    def kill(self) -> None:
        """Kills all process groups at once, for an exit that cannot wait."""
        for engine in self.replicas:
            engine.kill()

    def _page_files_of(self, number: int) -> list[int]:
        """The descriptors of the files for copies of pages: this replica's, then the others'."""
        files = [file.fileno() for file in self._page_files]
        return [files.pop(number), *files]

    def _ready(self) -> dict[int, EngineSupervisor]:
        return {number: engine for number, engine in enumerate(self.replicas) if engine.state == "ready"}

    def _on_replica_news(self, number: int, news: News) -> None:
        match news:
            case wire.Progress():
                self._show(number, news)
            case wire.Located():
                self._start_others()
                self._on_news(news)
            case wire.Ready(info):
                self._add_or_reject(number, info)
            case wire.Leaving() if self.replicas[number].state == "ready" and not self._closing:
                start_task(f"replacement of replica {number}", self._replace(number), self._fail)
            case Lost(killed):
                self._dispatcher.lose(self._handles[number], killed=killed)
            case GivenUp():
                self._lose(number, news)

    def _receive(self, number: int, events: Sequence[TokenEvent]) -> None:
        self._dispatcher.receive(self._handles[number], events)

    async def _replace(self, number: int) -> None:
        """Drains a replica, and replaces its process."""
        engine, handle = self.replicas[number], self._handles[number]
        log.info("replica %d received SIGTERM: it finishes its running requests and is replaced", number)
        engine.drain()
        self._dispatcher.close(handle)
        await _until(lambda: not handle.open, _LEAVE_SECONDS)
        self._dispatcher.move_all_off(handle)
        await engine.restart()

    def _show(self, number: int, progress: wire.Progress) -> None:
        """Reports one replica's progress for all, and only while none serves."""
        speaker = next(n for n, engine in enumerate(self.replicas) if engine.state != "stopped")
        if number == speaker and not self._ready():
            self._on_news(progress)

    def _start_others(self) -> None:
        if self._others is None:
            self._others = start_task("start of the other replicas", self._start_all(), self._fail)

    async def _start_all(self) -> None:
        for engine in self.replicas[1:]:
            if not self._closing:
                await engine.start()

    def _fail(self, reason: str) -> None:
        self._on_news(GivenUp(reason, exit_codes.ENGINE_LOST))

    def _add_or_reject(self, number: int, info: EngineInfo) -> None:
        """Lets a ready replica serve; rejects one that would answer differently from those that serve."""
        engine, ready = self.replicas[number], self._ready()
        for other, peer in ready.items():
            if peer.info and peer.info.fingerprint != info.fingerprint:
                engine.reject(
                    f"replica {number} would answer differently from replica {other} (fingerprints "
                    f"{info.fingerprint} and {peer.info.fingerprint}); expected the same weights, devices "
                    "and versions",
                    exit_codes.REFUSED_SETTING,
                )
                return
        again = number in self._proven
        self._proven.add(number)
        self._dispatcher.ready(self._handles[number], info)
        if len(self.replicas) > 1:
            log.info("replica %d is ready: %d of %d serve", number, len(ready), len(self.replicas))
        elif again:
            log.info("the engine is ready again")
        self._on_news(wire.Ready(info))

    def _lose(self, number: int, given_up: GivenUp) -> None:
        """Handles a replica that is given up. Its own error at the first start holds for all replicas."""
        left = sum(engine.state != "stopped" for engine in self.replicas)
        if left == 0:
            self._dispatcher.fail_all(EngineFailed("the engine was lost"))
        if left == 0 or (given_up.reported and number not in self._proven):
            self._on_news(given_up)
            return
        log.error("%s; %d of %d replicas are left", given_up.message, left, len(self.replicas))
        self._start_others()


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition holds or the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(_DRAIN_TICK_SECONDS)


def _call_later(seconds: float, work: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, work)
