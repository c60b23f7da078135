"""Gives freed memory of the host back to the system.

glibc keeps what it frees for later arrays, in a heap for each few threads. XLA's threads, which allocate what
is packed, do not use the heap of the thread that has loaded it.
"""

import ctypes

_SOME = 64 << 20
"""Bytes that may be kept. To give back takes milliseconds, so it is not done for every array."""


class Freed:
    """Counts the bytes that are freed, and gives them back whenever they have become some."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, size: int) -> None:
        """Counts `size` freed bytes."""
        self._bytes += size
        if self._bytes >= _SOME:
            self._bytes = 0
            _give_back()


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim:
        trim(0)
