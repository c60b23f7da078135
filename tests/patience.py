"""Upper bounds of wall time in tests, on a machine that others use too.

Such a bound tells two mechanisms apart: an answer that comes by itself, and one that a timeout of ten seconds
or more has to bring, or none at all. It measures no speed; that is what `benchmarks/` is for.
"""

import time
from collections.abc import Callable

_BUSY = 4.0
"""How many times slower than a quiet machine a busy one may be."""


def patient(seconds: float) -> float:
    """What takes at most `seconds` on a quiet machine has this many on a busy one."""
    return seconds * _BUSY


def wait_until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits for something that another thread or process does; fails after `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)  # nothing notifies us, so we poll
