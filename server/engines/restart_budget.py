"""How often, and how soon, a failing engine may be brought up again."""

import math
import time
from collections import deque
from collections.abc import Callable

MOST_FAILURES = 3
"""At this many failures within WINDOW_SECONDS, none of which came after good work, it is enough."""
WINDOW_SECONDS = 300.0

_QUICK_SECONDS = 5.0
"""Two failures this close to each other are no accident, whatever was done in between."""


class RestartBudget:
    """Counts failures within a window. The pause doubles: 1 s, 2 s, 4 s ..."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST_FAILURES) -> None:
        """`most` failures within the window are too many; with 1 there is no second start."""
        self._clock, self._most = clock, most
        self._failures: deque[float] = deque(maxlen=most)
        self._worked = -math.inf

    def pause(self, *, worked: bool = False) -> float | None:
        """Counts a failure; the seconds to wait before the next start, or None if there is to be none.

        Args:
          worked: it has finished requests since it was started. What happened before that is forgotten, and
            the next start is at once, unless that was so a moment ago.
        """
        now = self._clock()
        if worked and self._most > 1:
            self._failures.clear()
            quick, self._worked = now - self._worked < _QUICK_SECONDS, now
            return 1.0 if quick else 0.0
        self._failures.append(now)
        recent = sum(now - failure < WINDOW_SECONDS for failure in self._failures)
        return None if recent >= self._most else 2.0 ** (recent - 1)
