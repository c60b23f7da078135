"""`EngineProcess`: an engine in a process of its own that is brought up, fed, watched and brought up again.

It keeps the account of open streams and decides what becomes of them when the process dies; how a process is
spawned and known to be dead is `child.py`'s, how much may wait is `admission.py`'s, how several engines make
one is `replicas.py`'s. The one idea: whatever happens to the engine, every open stream hears of it, and HTTP
stays up.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..runtime.request import EngineFailed, EngineStats, NotReady, Request, TokenEvent
from . import exit_codes, wire
from .admission import Admission
from .child import Child
from .engine_client import EngineInfo, EngineState, MoveCause
from .event_stream import BufferedStream
from .restart_budget import RestartBudget
from .vital import start_task

log = logging.getLogger(__name__)

_DRAIN_TICK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The engine will not come back.

    Attributes:
      message: one line for the operator. exit_code: what the server should exit with.
    """

    message: str
    exit_code: int

    @property
    def own_words(self) -> bool:
        """Whether the engine said so itself; else it was lost too often."""
        return self.exit_code != exit_codes.ENGINE_LOST


News = wire.Progress | wire.Located | wire.Ready | GivenUp
"""What an operator may want to see of the engine's life."""


class EngineProcess:
    """An `EngineClient` over a supervised child process.

    Every method is to be called on one event loop's thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_news: Callable[[News], None] = lambda news: None,
        admission: Admission | None = None,
        name: str = "the engine process",
        restarts: bool = True,
    ) -> None:
        """Starts nothing yet.

        Args:
          command: the engine process's command line; `--fd N` is appended.
          on_news: hears how bringing it up goes; must not block.
          admission: the account that it shares with other engines; None for one of its own.
          name: what the log calls it. restarts: whether a lost engine is brought up again.
        """
        self._command = command
        self._on_news = on_news
        self._name = name
        self._state: EngineState = "starting"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._admission = admission or Admission()
        self._child: Child | None = None
        self._streams: dict[str, BufferedStream] = {}
        self._restarts = restarts
        self._budget = RestartBudget() if restarts else RestartBudget(most=1)
        self._rejected: GivenUp | None = None
        self._fatal: GivenUp | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo | None:
        """What it serves; None until it has been ready once."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot of its load."""
        return self._stats

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine was last heard of; 0.0 while there is no process to hear."""
        return self._child.silence if self._child else 0.0

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._child.pid if self._child else None

    @property
    def replicas(self) -> tuple["EngineProcess"]:
        """Itself alone."""
        return (self,)

    @property
    def queued(self) -> tuple[int, int]:
        """Nothing waits before it."""
        return 0, 0

    @property
    def moved(self) -> Mapping[MoveCause, int]:
        """Nothing is moved."""
        return {}

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    def submit(self, request: Request) -> BufferedStream:
        """Hands a request over.

        Raises:
          NotReady: not in state `ready`.
          Overloaded: the queue is full, in requests or in prompt tokens.
        """
        if self._state != "ready" or self._child is None:
            raise NotReady(f"the engine is {self._state}")
        self._admission.enter(request)
        stream = self._streams[request.id] = BufferedStream(request, self._release)
        self._child.send(wire.Submit(request))
        return stream

    def profile(self, on: bool) -> None:
        """Begins or ends a profile, if there is a process."""
        if self._child:
            self._child.send(wire.Profile(on))

    async def start(self) -> None:
        """Begins to load; returns at once."""
        if self._task is None:
            self._state = "loading"
            self._task = start_task("engine supervisor", self._keep_up(), self._fail)

    async def drain(self, seconds: float) -> None:
        """Takes nothing new, waits until running requests end or the time is up, fails the rest."""
        if self._state == "stopped":
            return
        self._state = "draining"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._streams:
                    await asyncio.sleep(_DRAIN_TICK_SECONDS)
        self._fail_streams("the server is shutting down", working=True)

    async def stop(self) -> None:
        """Ends the engine and all it started. Idempotent."""
        self._state = "stopped"
        self._fail_streams("the server is shutting down", working=True)
        if self._child:
            await self._child.stop()
        elif self._task:
            self._task.cancel()
        if self._task:
            await asyncio.wait([self._task])

    def kill(self) -> None:
        """Kills the engine's process group at once, for an exit that cannot wait."""
        if self._child:
            self._child.kill()

    def reject(self, message: str, exit_code: int) -> None:
        """Kills a process that must not serve, and gives the engine up."""
        self._rejected = GivenUp(message, exit_code)
        self._close()
        self.kill()

    async def _keep_up(self) -> None:
        """Brings up one process after another until we are stopped or it is hopeless.

        It is hopeless if the first one says that it cannot come up. Once one has served, the same words may
        pass (a file that is being replaced, memory that another program holds) and count as any failure.
        """
        while True:
            how = await self._one_life()
            if self._state in ("draining", "stopped"):
                return
            hopeless = self._rejected or (self._fatal and self._info is None)
            pause = None if hopeless else self._budget.pause()
            if pause is None:
                self._give_up(how)
                return
            how = f"failed: {self._fatal.message}" if self._fatal else how
            log.error("%s %s; the next one starts in %.0f s", self._name, how, pause)
            await asyncio.sleep(pause)

    async def _one_life(self) -> str:
        """Runs one process to its end. Streams fail as soon as it is lost, before it is reaped."""
        self._fatal = None
        try:
            child = self._child = await Child.spawn(self._command, self._receive)
        except OSError as error:
            return f"cannot be started: {error}"
        await child.lost()
        self._close()
        self._stats = EngineStats()
        self._fail_streams("the engine was lost")
        how = await child.reap()
        self._child = None
        return how

    def _close(self) -> None:
        """Takes nothing more until the next process is ready."""
        self._admission.close(self)
        if self._state in ("loading", "ready"):
            self._state = "restarting"

    def _give_up(self, how: str) -> None:
        why = (
            "it failed too often" if self._restarts else "it is one of several that only begin anew together"
        )
        message = f"{self._name} {how}; {why} and is given up"
        self._state = "stopped"
        self._on_news(self._rejected or self._fatal or GivenUp(message, exit_codes.ENGINE_LOST))

    def _fail(self, reason: str) -> None:
        """Nobody watches over the engine any longer."""
        self._close()
        self._state = "stopped"
        self.kill()
        self._fail_streams("the engine was lost")
        self._on_news(GivenUp(f"{self._name} is not supervised any longer: {reason}", exit_codes.ENGINE_LOST))

    def _receive(self, frame: wire.ToWeb) -> None:
        match frame:
            case wire.Step(events, stats):
                self._stats = stats
                for event in events:
                    self._dispatch(event)
            case wire.Heartbeat(stats):
                self._stats = stats
            case wire.Progress() | wire.Located():
                self._on_news(frame)
            case wire.Ready(info):
                self._welcome(info)
                self._on_news(frame)
            case wire.Fatal(message, exit_code):
                self._fatal = GivenUp(message, exit_code)

    def _welcome(self, info: EngineInfo) -> None:
        self._info = info
        if self._state in ("loading", "restarting"):
            self._state = "ready"
            self._admission.open(self, info)

    def _dispatch(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None:
            return  # aborted while the event was under way
        if not stream.started:
            stream.started = True
            self._admission.leave(stream.request)
        stream.put(event)

    def _release(self, stream: BufferedStream, working: bool) -> None:
        """A stream has ended; if the engine still works on it, it is told to leave off."""
        del self._streams[stream.request.id]
        self._admission.end()
        if not stream.started:
            self._admission.leave(stream.request)
        if working and self._child:
            self._child.send(wire.Abort(stream.request.id))

    def _fail_streams(self, reason: str, *, working: bool = False) -> None:
        for stream in list(self._streams.values()):
            stream.fail(EngineFailed(reason), working=working)
