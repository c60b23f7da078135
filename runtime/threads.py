"""Threads that may be inside XLA, and how the interpreter ends with them.

XLA is C++: a thread that is inside it when the interpreter is taken apart ends the process with SIGABRT
("FATAL: exception not rethrown"), and a compilation cannot be interrupted. So every such thread is started
here, and when the interpreter ends each is asked to end and then awaited, however long it takes, whether or
not anybody has called `close`. A process that leaves by `os._exit` awaits nothing.

The one idea: this happens in `atexit`, for that runs in the main thread, before anything is taken apart and
while Ctrl-C is still heard: it ends the process at once. (The interpreter's own wait for threads that are not
daemons, which comes before, would go on without them.) JAX has an `atexit` function of its own; what was
registered last runs first, so ours is registered again with every thread.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_QUIET_SECONDS = 1.0
"""Nobody needs to know of a wait that is shorter."""
_INTERRUPTED = 130
"""Exit code of a process that Ctrl-C has ended, as shells have it."""

_running: set["AwaitedThread"] = set()


class AwaitedThread(threading.Thread):
    """A thread that the end of the interpreter waits for.

    Attributes:
      end: asks its work to return soon; does not wait.
    """

    def __init__(self, name: str, work: Callable[[], object], end: Callable[[], object]) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self.end = end

    def start(self) -> None:
        """Starts it."""
        _running.add(self)
        atexit.unregister(_end_all)
        atexit.register(_end_all)
        super().start()

    def run(self) -> None:
        """What the thread does; not to be called."""
        try:
            super().run()
        finally:
            _running.discard(self)


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
                "the process ends when its %s does, which cannot be interrupted; Ctrl-C ends it at once",
                " and its ".join(late),
            )
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_INTERRUPTED)
