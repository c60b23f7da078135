"""`distaff serve` with a planted fault in its engines: `python -m benchmarks.trials.fatal serve …`.

The shipped server has no such option. This module runs the real command line, but also runs the engine
processes. There it builds the real engine and watches it: a prompt that begins with `PROMPT` ends the process
with SIGABRT, as a failed check in native code does, after `TOKENS` tokens have been generated for it. Each
crash adds a line to the file that an environment variable names.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPT = (7, 11, 13, 17, 19, 23, 29, 31)
TOKENS = 5
DEATHS = "DISTAFF_BENCHMARK_DEATHS"
"""The environment variable with the path of the crash log."""


class Fuse:
    """Tracks the crashing requests of one engine, and counts their tokens."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def submitted(self, id: str, prompt: Sequence[int]) -> None:
        """A request was submitted."""
        if tuple(prompt[: len(PROMPT)]) == PROMPT:
            self._tokens[id] = 0

    def generated(self, id: str) -> bool:
        """A token was generated; returns whether it triggers the crash."""
        if id not in self._tokens:
            return False
        self._tokens[id] += 1
        return self._tokens[id] >= TOKENS


def die() -> None:
    """Writes a line and aborts this process."""
    with Path(os.environ[DEATHS]).open("a") as file:
        file.write(f"{time.time()} {os.getpid()}\n")
    os.abort()


def work() -> None:
    """The engine process, with the fault."""
    from distaff.server.worker import main as worker

    build = worker.build_engine

    def build_with_fault(flags: Any, replica: int, send: Any, on_events: Any, *rest: Any) -> Any:
        fuse = Fuse()

        def watch(events: Any) -> None:
            on_events(events)
            if any([fuse.generated(event.request_id) for event in events]):
                die()

        engine, info = build(flags, replica, send, watch, *rest)
        submit = engine.submit

        def submit_watched(request: Any, arrival: int | None = None) -> None:
            fuse.submitted(request.id, request.prompt)
            submit(request, arrival)

        engine.submit = submit_watched
        return engine, info

    worker.build_engine = build_with_fault
    worker.main()


def serve() -> None:
    """The command line; this module runs the engine processes."""
    from distaff.server.command import cli
    from distaff.server.command import serve as web
    from distaff.server.engines import engine_process

    class Planted(web.WebProcess):
        """The web process with engines that have the fault."""

        def __init__(self, settings: Any, engine_commands: Sequence[Sequence[str]], *rest: Any, **more: Any):
            ours = {"distaff.server.worker.main": "benchmarks.trials.fatal"}
            commands = [[ours.get(word, word) for word in command] for command in engine_commands]
            super().__init__(settings, commands, *rest, **more)

    web.WebProcess = Planted
    engine_process.start_early = lambda command: None  # it would be one without the fault
    cli.main()


if __name__ == "__main__":
    work() if "--fd" in sys.argv else serve()
