"""The host's memory: how much is free, and giving back what is freed. No JAX.

glibc keeps what it frees for later arrays, in a heap for each few threads. XLA's threads, which allocate what
is packed, do not use the heap of the thread that has loaded it.
"""

import ctypes
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_GIVE_BACK_AFTER = 64 << 20
"""In bytes. `malloc_trim` takes milliseconds, so it is not called for every array."""


def free_bytes() -> int:
    """Free bytes of the host, within the limit of this process's control group."""
    available = psutil.virtual_memory().available
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    return available if limit is None or used is None else min(available, limit - used)


def _read(path: Path) -> int | None:
    """A number from the control group; None if there is no file or no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


class Freed:
    """Gives freed memory back each time that 64 MiB have accumulated."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, size: int) -> None:
        """Counts `size` freed bytes."""
        self._bytes += size
        if self._bytes >= _GIVE_BACK_AFTER:
            self._bytes = 0
            _give_back()


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim:
        trim(0)
