"""An engine process without JAX: the real server and wire around an engine whose output is computed by hand.

A script, started as the web process starts the real worker: `python fake_engine_process.py MODE --fd N`. The
engine says the request's prompt back, token by token, over and over, one token every 20 ms, until max_tokens
(for ever if None). Modes: `ready`; `crash` ends with code 3 before it is ready; `fatal` gives up with 65;
`load` loads for ever; `hang` stops its loop at the first request; `die` ends its loop at the first request;
`refuse` calls every request invalid; `stubborn` ignores every request to stop; `late` is ready a second
later; `other` has other weights; `deaf` fails in every abort, `mute` in every look at its load; `panic` fails
in every request with a grammar, `compile` never ends compiling the grammar `slow` and takes others; `long`
says more than the longest frame to the request `long`, LONGEST_FRAME in the environment being that length.
In the environment HEARTBEAT_SECONDS and PATIENCE_SECONDS replace the constants of `engine_server`.
"""

import itertools
import os
import queue
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from distaff.checkpoints.errors import CheckpointError
from distaff.runtime.request import EngineStats, InvalidRequest, Request, TokenEvent
from distaff.server.engine_client import EngineInfo
from distaff.server.engines import wire
from distaff.server.logs import configure_logging
from distaff.server.worker import engine_server
from distaff.server.worker.engine_server import OnEvents, Send
from distaff.server.worker.main import serve

INFO = EngineInfo(context=4096, vocabulary=259, slots=4, fingerprint="0123456789")
STEP_SECONDS = 0.02


class Panic(BaseException):
    """As extension modules raise: no `Exception`."""


class FakeEngine:
    """Echoes prompts; one thread, like the real one."""

    slowest_step = 0.0

    def __init__(self, mode: str, on_events: OnEvents) -> None:
        self.beat = time.monotonic()
        self._mode = mode
        self._on_events = on_events
        self._inbox: queue.SimpleQueue[tuple[str, Request | None]] = queue.SimpleQueue()
        self._rows: dict[str, tuple[itertools.cycle[int], int | None]] = {}
        self._stopping = False
        self._steps = 0
        self._compiled = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stats(self) -> EngineStats:
        if self._mode == "mute":
            raise ZeroDivisionError
        return EngineStats(running=len(self._rows), steps=self._steps)

    def start(self) -> None:
        self._thread.start()

    def next_arrival(self) -> int:
        return 0

    def submit(self, request: Request, arrival: int | None = None) -> None:
        if self._mode == "refuse":
            raise InvalidRequest("no", "prompt")
        if self._mode == "panic" and request.params.grammar:
            raise Panic
        if self._mode == "compile" and request.params.grammar == "slow":
            self._compiled.wait()
        self._inbox.put((request.id, request))

    def abort(self, request_id: str) -> None:
        if self._mode == "deaf":
            raise KeyError(request_id)
        self._inbox.put((request_id, None))

    def profile(self, on: bool) -> None:
        pass

    def stop(self) -> None:
        time.sleep(3600 if self._mode == "stubborn" else 0)
        self._stopping = True
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self.beat = time.monotonic()
            time.sleep(STEP_SECONDS)
            self._read_inbox()
            if self._rows and self._mode == "die":
                return
            if self._rows and self._mode == "hang":
                time.sleep(3600)
            if self._rows:
                self._steps += 1
                self._on_events([self._say(name) for name in list(self._rows)])

    def _read_inbox(self) -> None:
        while not self._inbox.empty():
            name, request = self._inbox.get()
            self._rows.pop(name, None)
            if request:
                self._rows[name] = _continued(request)

    def _say(self, name: str) -> TokenEvent:
        if name == "long":
            long = (0.0,) * 10_000
            return TokenEvent(request_id=name, token=0, pooled=long, device_seconds=2.5, page_seconds=7.0)
        tokens, left = self._rows[name]
        self._rows[name] = tokens, None if left is None else left - 1
        if left == 1:
            del self._rows[name]
        return TokenEvent(request_id=name, token=next(tokens), finish="length" if left == 1 else None)


def _continued(request: Request) -> tuple["itertools.cycle[int]", int | None]:
    """The tokens that are still to be said, and how many."""
    said, most = len(request.generated), request.params.max_tokens
    tokens = itertools.cycle(request.prompt)
    for _ in range(said % len(request.prompt)):
        next(tokens)
    return tokens, None if most is None else most - said


def build(mode: str, send: Send, on_events: OnEvents) -> tuple[FakeEngine, EngineInfo]:
    send(wire.Progress("load", 1, 1))
    send(wire.Located(str(Path(__file__).parent)))
    if mode == "crash":
        os._exit(3)
    if mode == "fatal":
        raise CheckpointError("model.safetensors: damaged")
    if mode == "load":
        time.sleep(3600)
    if mode == "late":
        time.sleep(1)
    return FakeEngine(mode, on_events), replace(INFO, fingerprint="9876543210") if mode == "other" else INFO


if __name__ == "__main__":
    wire.MAX_FRAME = int(os.environ.get("LONGEST_FRAME", wire.MAX_FRAME))
    for constant in ("HEARTBEAT_SECONDS", "PATIENCE_SECONDS"):
        if constant in os.environ:
            setattr(engine_server, constant, float(os.environ[constant]))
    configure_logging("INFO")
    serve(int(sys.argv[-1]), lambda send, on_events: build(sys.argv[1], send, on_events))
