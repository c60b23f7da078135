"""What tests ask about processes that they did not start themselves."""

import contextlib
import time
from collections.abc import Sequence

import psutil


def ended(process: psutil.Process) -> bool:
    """Whether it runs no longer; true before the system's first process has collected its exit code."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def wait_ended(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Waits until all have ended; returns those that have not."""
    limit = time.monotonic() + seconds
    while (alive := [process for process in processes if not ended(process)]) and time.monotonic() < limit:
        time.sleep(0.01)
    return alive
