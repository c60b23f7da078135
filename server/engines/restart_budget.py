"""How often, and how soon, a failing engine may be restarted."""

import math
import time
from collections import deque
from collections.abc import Callable

MOST_FAILURES = 3
"""After this many failures within WINDOW_SECONDS without finished requests in between, it is given up."""
WINDOW_SECONDS = 300.0
PAUSE_SECONDS = 1.0
"""The first pause before a restart; each further one is twice as long."""

_QUICK_SECONDS = 5.0
"""Two failures this close together count, even if requests finished in between."""


class RestartBudget:
    """Counts failures within a window. The pause doubles: 1 s, 2 s, 4 s ..."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST_FAILURES) -> None:
        """`most` failures within the window are too many; with 1 there is no restart."""
        self._clock, self._most = clock, most
        self._failures: deque[float] = deque(maxlen=most)
        self._worked = -math.inf

    def pause(self, *, worked: bool = False) -> float | None:
        """Counts a failure; returns the seconds to wait before the next start, or None if there is none.

        Args:
          worked: it has finished requests since it was started, or another program killed it. Earlier
            failures are then forgotten and the next start is immediate, unless the last such failure was a
            moment ago.
        """
        now = self._clock()
        if worked and self._most > 1:
            self._failures.clear()
            quick, self._worked = now - self._worked < _QUICK_SECONDS, now
            return PAUSE_SECONDS if quick else 0.0
        self._failures.append(now)
        recent = sum(now - failure < WINDOW_SECONDS for failure in self._failures)
        return None if recent >= self._most else PAUSE_SECONDS * 2.0 ** (recent - 1)
