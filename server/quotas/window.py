"""`Window`: how much was used within the last 60 seconds, exactly.

It remembers each amount with its time, so in no 60 seconds there is more than the limit, and the time at
which a further amount fits is known. (A token bucket needs no memory, but lets twice the limit pass in a
minute.) An amount can be corrected later, at its own time; if it has left the window meanwhile, what was used
beyond it counts from the correction on. Contains no clock.
"""

from collections import deque
from dataclasses import dataclass

SECONDS = 60.0


@dataclass(slots=True)
class Amount:
    """An amount, and when it was used."""

    at: float
    size: int


class Window:
    """Amounts of the last 60 seconds. Times never go back."""

    def __init__(self) -> None:
        self._amounts: deque[Amount] = deque()
        self._used = 0

    def used(self, now: float) -> int:
        """The sum of the amounts of the last 60 seconds."""
        while self._amounts and self._amounts[0].at + SECONDS <= now:
            self._used -= self._amounts.popleft().size
        return self._used

    def wait(self, size: int, limit: int, now: float) -> float:
        """Seconds until an amount fits below the limit, if nothing is added meanwhile; 0 if it fits now.

        Args:
          size: at most the limit.
        """
        excess = self.used(now) + size - limit
        for amount in self._amounts:
            if excess <= 0:
                break
            excess -= amount.size
            free_at = amount.at + SECONDS
            if excess <= 0:
                return free_at - now
        return 0.0

    def reset(self, now: float) -> float:
        """Seconds until nothing is left in the window."""
        self.used(now)
        last = next((amount for amount in reversed(self._amounts) if amount.size), None)
        return 0.0 if last is None else last.at + SECONDS - now

    def add(self, size: int, now: float) -> Amount:
        """Records an amount that is used now."""
        self.used(now)
        self._amounts.append(Amount(now, size))
        self._used += size
        return self._amounts[-1]

    def correct(self, amount: Amount, size: int, now: float) -> None:
        """Records that an earlier amount was of another size. The newest one is forgotten if it was 0."""
        self.used(now)
        if amount.at + SECONDS > now:
            self._used += size - amount.size
            amount.size = size
            if not size and self._amounts[-1] is amount:
                self._amounts.pop()
        elif size > amount.size:
            self.add(size - amount.size, now)
