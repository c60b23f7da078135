"""Where the engine's thread spends its time, by phase: seconds for `/metrics`, names in a profile.

The phases of a turn are `hear` (requests and aborts), `plan`, `launch`, `wait` (for the device) and `settle`
(samples become events). What is not in them is the loop itself.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

PHASES = ("hear", "plan", "launch", "wait", "settle")


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
