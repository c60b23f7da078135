"""`EngineProcess`: an engine in a process of its own that is brought up, fed, watched and brought up again.

It knows one life after the other, and whether the last one was of use; how a process is spawned and known to
be dead is `process.py`'s, what it computes and what becomes of that when it dies is `dispatcher.py`'s, how
several engines make one is `replicas.py`'s. The one idea: whatever happens to the process, whoever uses it
hears of it at once, and HTTP stays up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...runtime.request import EngineStats, Request, TokenEvent
from .. import exit_codes
from ..engine_client import EngineInfo, EngineState
from ..vital import start_task
from . import wire
from .process import Child
from .restart_budget import RestartBudget

log = logging.getLogger(__name__)

_UNKNOWN_SECONDS = 5.0
"""What an engine that was never ready is said to need until it is."""


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


@dataclass(frozen=True, slots=True)
class Lost:
    """The process is dead, or must be taken for dead, and with it all that it computed.

    Attributes:
      killed: by somebody else's SIGKILL; nothing that it computed is the cause.
    """

    killed: bool = False


News = wire.Progress | wire.Located | wire.Ready | wire.Leaving | Lost | GivenUp
"""What happens in an engine's life."""


class EngineProcess:
    """A supervised child process.

    Every method is to be called on one event loop's thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_news: Callable[[News], None],
        on_events: Callable[[Sequence[TokenEvent]], None],
        name: str = "the engine process",
        restarts: bool = True,
    ) -> None:
        """Starts nothing yet.

        Args:
          command: the engine process's command line; `--fd N` is appended.
          on_news: hears of its life; must not block.
          on_events: hears what it says of the requests that it was given; must not block.
          name: what the log calls it. restarts: whether a lost engine is brought up again.
        """
        self._command = command
        self._on_news, self._on_events = on_news, on_events
        self._name = name
        self._state: EngineState = "starting"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._child: Child | None = None
        self._begun = 0.0
        self._start_seconds = _UNKNOWN_SECONDS
        self._worked = False
        self._renewed = False
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
    def ready_in(self) -> float:
        """Seconds until it is probably ready: as many as the last start took, from when this one began."""
        since = time.monotonic() - self._begun if self._child else 0.0
        return max(self._start_seconds - since, 1.0)

    def send(self, request: Request) -> None:
        """Gives a request to the process, if there is one."""
        if self._child:
            self._child.send(wire.Submit(request))

    def abort(self, request_id: str) -> None:
        """Takes a request from it."""
        if self._child:
            self._child.send(wire.Abort(request_id))

    def profile(self, on: bool) -> None:
        """Begins or ends a profile, if there is a process."""
        if self._child:
            self._child.send(wire.Profile(on))

    async def start(self) -> None:
        """Begins to load; returns at once."""
        if self._task is None:
            self._state = "loading"
            self._task = start_task("engine supervisor", self._keep_up(), self._fail)

    async def stop(self) -> None:
        """Ends the engine and all it started. Idempotent."""
        self._state = "stopped"
        if self._child:
            await self._child.stop()
        elif self._task:
            self._task.cancel()
        if self._task:
            await asyncio.wait([self._task])

    def drain(self) -> None:
        """Takes nothing new, until `renew`; ignored unless it is ready."""
        if self._state == "ready":
            self._state = "draining"

    def stay(self) -> None:
        """Takes requests again."""
        if self._state == "draining":
            self._state = "ready"

    async def renew(self) -> None:
        """Ends the process in order and starts another one."""
        if self._child and self._state == "draining":
            self._renewed = True
            await self._child.stop()

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
            if self._state == "stopped":
                return
            if self._renewed:
                self._renewed = False
                log.info("%s has ended as it was asked to; the next one starts", self._name)
                continue
            hopeless = self._rejected or (self._fatal and self._info is None)
            pause = None if hopeless else self._budget.pause(worked=self._worked)
            if pause is None:
                self._give_up(how)
                return
            how = f"failed: {self._fatal.message}" if self._fatal else how
            log.error("%s %s; the next one starts in %.0f s", self._name, how, pause)
            await asyncio.sleep(pause)

    async def _one_life(self) -> str:
        """Runs one process to its end. Reports the loss before it reaps what is left of the process."""
        self._fatal = None
        self._worked = False
        self._begun = time.monotonic()
        try:
            child = self._child = await Child.spawn(self._command, self._receive)
        except OSError as error:
            return f"cannot be started: {error}"
        await child.lost()
        self._leave_service()
        self._on_news(Lost(await child.killed_by_others()))
        how = await child.reap()
        self._child = None
        return how

    def _leave_service(self) -> None:
        """Takes nothing more until the next process is ready."""
        self._stats = EngineStats()
        if self._state in ("loading", "ready", "draining"):
            self._state = "restarting"

    def _close(self) -> None:
        """Takes nothing more, and gives up what it computes."""
        self._leave_service()
        self._on_news(Lost())

    def _give_up(self, how: str) -> None:
        why = (
            "it failed too often" if self._restarts else "it is one of several that only begin anew together"
        )
        message = f"{self._name} {how}; {why} and is given up"
        self._state = "stopped"
        self._on_news(self._rejected or self._fatal or GivenUp(message, exit_codes.ENGINE_LOST))

    def _fail(self, reason: str) -> None:
        """Nobody watches over the engine any longer."""
        self._state = "stopped"
        self.kill()
        self._close()
        self._on_news(GivenUp(f"{self._name} is not supervised any longer: {reason}", exit_codes.ENGINE_LOST))

    def _receive(self, frame: wire.ToWeb) -> None:
        match frame:
            case wire.Step(events, stats):
                self._stats = stats
                self._worked |= any(event.finish in ("stop", "length") for event in events)
                self._on_events(events)
            case wire.Heartbeat(stats):
                self._stats = stats
            case wire.Progress() | wire.Located():
                self._on_news(frame)
            case wire.Leaving() if self._restarts:
                self._on_news(frame)
            case wire.Leaving():
                log.warning("%s was asked to end, and can only end with all others: it serves on", self._name)
            case wire.Ready(info):
                self._welcome(info)
                self._on_news(frame)
            case wire.Fatal(message, exit_code):
                self._fatal = GivenUp(message, exit_code)

    def _welcome(self, info: EngineInfo) -> None:
        self._info = info
        self._start_seconds = time.monotonic() - self._begun
        if self._state in ("loading", "restarting"):
            self._state = "ready"
