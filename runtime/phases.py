"""How the engine's thread spends its time, by phase: seconds for `/metrics`, names in JAX's profiles.

The phases of an iteration are `receive` (requests and aborts), `plan`, `launch`, `wait` (for the device),
`output` (samples become events) and `mask` (grammars compute the allowed ids). The rest is the loop itself.

Start-up is not part of this: `build_engine` in `server/worker/main.py` has its order, `Runner.warm_up`
compiles the steps, and `Progress` frames report what is done (`server/engines/wire.py`).
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

log = logging.getLogger(__name__)

PHASES = ("receive", "plan", "launch", "wait", "output", "mask")


class Phases:
    """Seconds by phase since the start.

    Attributes:
      seconds: by phase; `idle` counts the seconds in which the device had no work while requests waited
        (uncertain cases are counted too).
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*PHASES, "idle"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside the block for this phase."""
        started = time.monotonic()
        with jax.profiler.TraceAnnotation(name):
            yield
        self.seconds[name] += time.monotonic() - started


class Profiler:
    """JAX's profiler: one profile at a time, in one folder, of the whole process."""

    def __init__(self, folder: str | None) -> None:
        """If `folder` is None, no profiles are made."""
        self._folder = folder
        self._running = False
        self._lock = threading.Lock()

    def switch(self, on: bool) -> None:
        """Starts a profile, or ends and writes the running one; otherwise does nothing."""
        with self._lock:
            if self._folder is None or on == self._running:
                return
            self._running = on
            if on:
                jax.profiler.start_trace(self._folder)
            else:
                jax.profiler.stop_trace()
        log.info("profile %s in %s", "started" if on else "written", self._folder)
