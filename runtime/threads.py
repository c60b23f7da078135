"""Threads that may be inside XLA, and how the interpreter shuts down with them.

XLA is C++: a thread that is inside it while the interpreter shuts down ends the process with SIGABRT
("FATAL: exception not rethrown"), and a compilation cannot be interrupted. So every such thread is started
here. When the interpreter ends, each one is asked to end and then joined, however long that takes, even if
nobody has called `close`. A process that exits by `os._exit` waits for nothing.

The one idea: this happens in `atexit`, because `atexit` runs in the main thread before anything is shut down,
and Ctrl-C still works there: it ends the process at once. (The interpreter's own wait for non-daemon threads
comes earlier and would not include these daemons.) JAX has an `atexit` function of its own. Functions run in
reverse order of registration, so ours is registered again with every thread.
"""

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_QUIET_SECONDS = 1.0
"""A wait that is shorter is not logged."""
_POLL_SECONDS = 0.1
_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report it."""

_running: set["AwaitedThread"] = set()


class AwaitedThread(threading.Thread):
    """A thread that the interpreter waits for at exit.

    Attributes:
      end: makes its work return soon; does not wait.
    """

    def __init__(self, name: str, work: Callable[[], object], end: Callable[[], object]) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self.end = end

    def start(self) -> None:
        """Starts the thread."""
        _running.add(self)
        atexit.unregister(_end_all)
        atexit.register(_end_all)
        super().start()

    def run(self) -> None:
        """Runs the work; called by the thread itself."""
        try:
            super().run()
        finally:
            _running.discard(self)


class Background:
    """A computation in its own thread; its result or exception can be read once."""

    def __init__(self, name: str, compute: Callable[[], Any]) -> None:
        self._outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        AwaitedThread(name, lambda: self._run(compute), lambda: None).start()

    def _run(self, compute: Callable[[], Any]) -> None:
        try:
            self._outcome.put((compute(), None))
        except Exception as error:
            self._outcome.put((None, error))

    def result(self) -> Any:
        """Waits for the outcome."""
        value, error = self._outcome.get()
        if error is not None:
            raise error
        return value


def _end_all() -> None:
    try:
        threads = [thread for thread in list(_running) if thread.is_alive()]
        for thread in threads:
            thread.end()
        deadline = time.monotonic() + _QUIET_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if late := [thread.name for thread in threads if thread.is_alive()]:
            log.warning(
                "the process waits for its %s, which cannot be interrupted; Ctrl-C ends it at once",
                " and its ".join(late),
            )
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_INTERRUPTED)


def wait_for(event: threading.Event, stop: threading.Event, seconds: float) -> None:
    """Waits for an event, at most until `stop` is set or `seconds` have passed."""
    ends = time.monotonic() + seconds
    while not (stop.is_set() or event.wait(_POLL_SECONDS)) and time.monotonic() < ends:
        pass
