"""Where the engine's thread spends its time, by phase: seconds for `/metrics`, names in JAX's profiles.

The phases of a turn are `hear` (requests and aborts), `plan`, `launch`, `wait` (for the device), `settle`
(samples become events) and `mask` (grammars say what may follow). What is not in them is the loop itself.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

log = logging.getLogger(__name__)

PHASES = ("hear", "plan", "launch", "wait", "settle", "mask")


class Phases:
    """Seconds by phase since the start.

    Attributes:
      seconds: by name, and under `idle` those in which the device had nothing to do though somebody waited:
        where that is not certain, it is counted.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*PHASES, "idle"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Whatever happens inside belongs to the phase."""
        begun = time.monotonic()
        with jax.profiler.TraceAnnotation(name):
            yield
        self.seconds[name] += time.monotonic() - begun


class Profiler:
    """JAX's profiler: one profile at a time, in one folder, of everything in the process."""

    def __init__(self, folder: str | None) -> None:
        """`folder` None: no profiles are made."""
        self._folder = folder
        self._running = False
        self._lock = threading.Lock()

    def switch(self, on: bool) -> None:
        """Begins a profile, or writes the one that was begun; anything else is no news."""
        with self._lock:
            if self._folder is None or on == self._running:
                return
            self._running = on
            if on:
                jax.profiler.start_trace(self._folder)
            else:
                jax.profiler.stop_trace()
        log.info("profile %s in %s", "begun" if on else "written", self._folder)
