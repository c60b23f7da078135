"""Runs an engine behind a connection to the web process: builds it, exchanges frames, and ends cleanly.

It uses the wire format and an engine's interface, but neither JAX nor checkpoints: those are in the `build`
function (`main.py` has the real one, tests have their own). A heartbeat is sent only while the engine's own
loop makes progress, so that a hung process does not count as working.
"""

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ...checkpoints.files import Progress
from ...model.errors import DistaffError
from ...runtime.request import EngineStats, NotReady, Request, TokenEvent
from .. import exit_codes
from ..engine_client import EngineInfo
from ..engines import wire
from ..process.vital import start_thread
from .channel import Channel
from .submissions import Submissions, refusal

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""The least age, in seconds, of the loop's last iteration at which heartbeats stop."""

_SLOW_STEPS = 10
"""An iteration may take this many times the slowest step: a large model on a small machine is not hung."""
_WATCH_SECONDS = 0.2
_PROGRESS_SECONDS = 0.1

Send = Callable[[wire.ToWeb], None]
OnEvents = Callable[[list[TokenEvent]], None]


class ServedEngine(Protocol):
    """The interface of an engine that this module needs; `runtime.Engine` implements it."""

    @property
    def beat(self) -> float: ...

    @property
    def alive(self) -> bool: ...

    @property
    def slowest_step(self) -> float: ...

    @property
    def stats(self) -> EngineStats: ...

    def start(self) -> None: ...

    def submit(self, request: Request, arrival: int | None = None) -> None: ...

    def next_arrival(self) -> int: ...

    def abort(self, request_id: str) -> None: ...

    def profile(self, on: bool) -> None: ...

    def stop(self) -> None: ...


Build = Callable[[Send, OnEvents], tuple[ServedEngine, EngineInfo]]
"""Builds an engine that is warmed up but not started. It sends `Progress` and `Located` meanwhile, and passes
the second argument to the engine as its event callback."""


def throttled(send: Send) -> Progress:
    """A `progress(phase, done, total)` that sends a phase's first and last update, and ten per second."""
    phase, due = "", 0.0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal phase, due
        now = time.monotonic()
        if name != phase or now >= due or done == total:
            phase, due = name, now + _PROGRESS_SECONDS
            send(wire.Progress(name, done, total))

    return progress


class EngineServer:
    """One engine behind one connection.

    Threads: the channel's reader passes on submissions and aborts, others compile grammars, the engine's
    thread reports events, another sends heartbeats; the caller of `run` builds the engine and then waits.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._engine: ServedEngine | None = None
        self._submissions: Submissions | None = None
        self._stopping = threading.Event()
        self._channel = Channel(connection, self._receive)
        start_thread("heartbeat", self._beat)

    def run(self, build: Build) -> int:
        """Builds the engine and serves until a stop request, or until the engine's thread ends.

        Returns:
          The exit code of the process.
        """
        try:
            engine, info = build(self._channel.send, self._on_events)
        except DistaffError as error:
            return self._give_up(error)
        engine.start()
        self._submissions = Submissions(engine, lambda refused: self._on_events([refused]))
        self._engine = engine
        gc.freeze()  # loaded objects stay; the collector need not traverse them again
        self._channel.send(wire.Heartbeat(self._stats()))  # the first heartbeat carries the step times
        self._channel.send(wire.Ready(info))
        while engine.alive and not self._stopping.wait(_WATCH_SECONDS):
            pass
        return self._end(engine)

    def leave(self) -> None:
        """Asks the web process to stop this one. Safe to call from any thread."""
        self._channel.send(wire.Leaving())

    def _give_up(self, error: DistaffError) -> int:
        code = exit_codes.of(error)
        self._channel.send(wire.Fatal(str(error), code))
        self._channel.flush()
        return code

    def _end(self, engine: ServedEngine) -> int:
        if self._stopping.is_set():
            engine.stop()
            return exit_codes.OK
        self._channel.flush()
        log.error("the engine's thread has ended; the process ends with it")
        return exit_codes.ENGINE_LOST

    def _receive(self, frame: wire.ToEngine) -> None:
        match frame:
            case wire.Submit(request) if self._submissions:
                self._submissions.submit(request)
            case wire.Submit(request):
                self._on_events([refusal(request, NotReady("the engine is still loading"))])
            case wire.Abort(request_id):
                if self._submissions:
                    self._submissions.abort(request_id)
            case wire.Profile(on):
                if self._engine:  # beside the loop: writing a profile takes seconds
                    threading.Thread(target=self._profile, args=(self._engine, on), daemon=True).start()
            case wire.Stop() if self._engine:
                self._stopping.set()
            case wire.Stop():
                os._exit(exit_codes.OK)  # loading and compilation cannot be interrupted in another way

    @staticmethod
    def _profile(engine: ServedEngine, on: bool) -> None:
        try:
            engine.profile(on)
        except Exception:
            log.exception("the profile could not be %s", "started" if on else "written")

    def _on_events(self, events: list[TokenEvent]) -> None:
        try:
            self._channel.send(wire.Step(events, self._stats()))
        except wire.WireError:
            self._on_long_events(events)

    def _on_long_events(self, events: list[TokenEvent]) -> None:
        """Sends each event separately; only a request whose event is too long for a frame fails."""
        for event in events:
            try:
                self._channel.send(wire.Step([event], self._stats()))
            except wire.WireError as error:
                log.error("request %s: %s", event.request_id, error)
                if self._submissions:
                    self._submissions.abort(event.request_id)
                self._channel.send(wire.Step([_failed(event, str(error))], self._stats()))

    def _stats(self) -> EngineStats:
        return self._engine.stats if self._engine else EngineStats()

    def _beat(self) -> None:
        while True:
            if self._makes_progress():
                self._channel.offer(wire.Heartbeat(self._stats()))
            time.sleep(HEARTBEAT_SECONDS)

    def _makes_progress(self) -> bool:
        """Whether the engine's loop has made progress recently; True before it has started."""
        engine = self._engine
        if engine is None:
            return True
        patience = max(PATIENCE_SECONDS, _SLOW_STEPS * engine.slowest_step)
        return time.monotonic() - engine.beat < patience


def _failed(event: TokenEvent, reason: str) -> TokenEvent:
    """The event that ends a request in place of another one; what it has used stays."""
    return TokenEvent(
        request_id=event.request_id,
        finish="error",
        error=reason,
        device_seconds=event.device_seconds,
        page_seconds=event.page_seconds,
    )
