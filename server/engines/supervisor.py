"""`EngineSupervisor`: starts an engine process, sends it requests, monitors it and restarts it.

It runs one process after another, and records whether the last one finished any request. `engine_process.py`
spawns a process and detects its death, `dispatcher.py` decides what it computes and moves its sequences when
it dies, `engine_group.py` joins several engines into one. Users are notified at once of every change of the
process, and HTTP stays up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...runtime.request import EngineStats, Request, TokenEvent
from .. import exit_codes
from ..engine_client import EngineInfo, EngineState
from ..process.vital import start_task
from . import wire
from .engine_process import EngineProcess
from .restart_budget import RestartBudget

log = logging.getLogger(__name__)

_UNKNOWN_SECONDS = 5.0
"""The assumed start-up time, in seconds, of an engine that was never ready."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The engine will not be restarted.

    Attributes:
      message: one line for the operator. exit_code: the exit code for the server.
    """

    message: str
    exit_code: int

    @property
    def reported(self) -> bool:
        """Whether the engine itself reported the error; else it was lost too often."""
        return self.exit_code != exit_codes.ENGINE_LOST


@dataclass(frozen=True, slots=True)
class Lost:
    """The process is dead or counts as dead, and its computations are lost.

    Attributes:
      killed: by an external SIGKILL; none of its requests is the cause.
    """

    killed: bool = False


News = wire.Progress | wire.Located | wire.Ready | wire.Leaving | Lost | GivenUp
"""Changes of an engine's state."""


class EngineSupervisor:
    """A supervised child process.

    Call every method on the thread of one event loop.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_news: Callable[[News], None],
        on_events: Callable[[Sequence[TokenEvent]], None],
        name: str = "the engine process",
        restarts: bool = True,
        page_files: Sequence[int] = (),
    ) -> None:
        """Starts no process yet.

        Args:
          command: the engine process's command line; `--page-file N … --fd N` is appended.
          on_news: called with changes of its state; must not block.
          on_events: called with the events of its requests; must not block.
          name: its name in the log. restarts: whether a lost engine is restarted.
          page_files: the open files for copies of pages, which outlive a process: its own, then the others'.
        """
        self._command, self._page_files = command, page_files
        self._on_news, self._on_events = on_news, on_events
        self._name = name
        self._state: EngineState = "starting"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._child: EngineProcess | None = None
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
        """Its properties; None until it has been ready once."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot of its load."""
        return self._stats

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine's last frame; 0.0 while there is no process."""
        return self._child.silence if self._child else 0.0

    @property
    def pid(self) -> int | None:
        """The id of the engine's process; None while there is none."""
        return self._child.pid if self._child else None

    @property
    def ready_in(self) -> float:
        """Seconds until it is probably ready, estimated from the duration of its last start."""
        since = time.monotonic() - self._begun if self._child else 0.0
        return max(self._start_seconds - since, 1.0)

    def send(self, request: Request) -> None:
        """Sends a request to the process, if there is one."""
        if self._child:
            self._child.send(wire.Submit(request))

    def abort(self, request_id: str) -> None:
        """Aborts a request."""
        if self._child:
            self._child.send(wire.Abort(request_id))

    def profile(self, on: bool) -> None:
        """Starts or stops a profile, if there is a process."""
        if self._child:
            self._child.send(wire.Profile(on))

    async def start(self) -> None:
        """Starts loading; returns at once."""
        if self._task is None:
            self._state = "loading"
            self._task = start_task("engine supervisor", self._supervise(), self._fail)

    async def stop(self) -> None:
        """Ends the engine and the processes that it started. Idempotent."""
        self._state = "stopped"
        if self._child:
            await self._child.stop()
        elif self._task:
            self._task.cancel()
        if self._task:
            await asyncio.wait([self._task])

    def drain(self) -> None:
        """Accepts no new requests until `restart`; ignored unless it is ready."""
        if self._state == "ready":
            self._state = "draining"

    def resume(self) -> None:
        """Accepts requests again."""
        if self._state == "draining":
            self._state = "ready"

    async def restart(self) -> None:
        """Stops the process cleanly and starts another one."""
        if self._child and self._state == "draining":
            self._renewed = True
            await self._child.stop()

    def kill(self) -> None:
        """Kills the engine's process group at once, for an exit that cannot wait."""
        if self._child:
            self._child.kill()

    def reject(self, message: str, exit_code: int) -> None:
        """Kills a process that must not serve, and gives up the engine."""
        self._rejected = GivenUp(message, exit_code)
        self._close()
        self.kill()

    async def _supervise(self) -> None:
        """Starts one process after another until the engine is stopped or given up.

        It is given up if the first process reports that it cannot start. After one has served, the same error
        may be temporary (a file that is being replaced, memory that another program holds) and counts like
        any failure.
        """
        while True:
            how = await self._run_process()
            if self._state == "stopped":
                return
            if self._renewed:
                self._renewed = False
                log.info("%s has stopped as requested; the next one starts", self._name)
                continue
            hopeless = self._rejected or (self._fatal and self._info is None)
            pause = None if hopeless else self._budget.pause(worked=self._worked)
            if pause is None:
                self._give_up(how)
                return
            how = f"failed: {self._fatal.message}" if self._fatal else how
            log.error("%s %s; the next one starts in %.0f s", self._name, how, pause)
            await asyncio.sleep(pause)

    async def _run_process(self) -> str:
        """Runs one process to its end.

        Reports the loss before it reaps what is left of the process.
        """
        self._fatal = None
        self._worked = False
        self._begun = time.monotonic()
        try:
            child = self._child = await EngineProcess.spawn(self._command, self._receive, self._page_files)
        except OSError as error:
            return f"cannot be started: {error}"
        await child.lost()
        self._stop_accepting()
        killed = await child.killed_by_others()
        self._worked |= killed  # the next start will not fail because of that
        self._on_news(Lost(killed))
        how = await child.reap()
        self._child = None
        return how

    def _stop_accepting(self) -> None:
        """Accepts nothing until the next process is ready."""
        self._stats = EngineStats()
        if self._state in ("loading", "ready", "draining"):
            self._state = "restarting"

    def _close(self) -> None:
        """Accepts nothing more, and drops what it computes."""
        self._stop_accepting()
        self._on_news(Lost())

    def _give_up(self, how: str) -> None:
        why = "it failed too often" if self._restarts else "it can only be restarted with the other processes"
        message = f"{self._name} {how}; {why} and is given up"
        self._state = "stopped"
        self._on_news(self._rejected or self._fatal or GivenUp(message, exit_codes.ENGINE_LOST))

    def _fail(self, reason: str) -> None:
        """Gives up the engine because its supervisor has failed."""
        self._state = "stopped"
        self.kill()
        self._close()
        self._on_news(GivenUp(f"{self._name} is no longer supervised: {reason}", exit_codes.ENGINE_LOST))

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
                log.warning(
                    "%s received SIGTERM, but can only stop with all others: it continues", self._name
                )
            case wire.Ready(info):
                self._become_ready(info)
                self._on_news(frame)
            case wire.Fatal(message, exit_code):
                self._fatal = GivenUp(message, exit_code)

    def _become_ready(self, info: EngineInfo) -> None:
        self._info = info
        self._start_seconds = time.monotonic() - self._begun
        if self._state in ("loading", "restarting"):
            self._state = "ready"
