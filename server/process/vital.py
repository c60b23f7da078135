"""Essential threads and tasks: if one fails, the process notices.

A thread or task with an unread exception leaves a process that looks alive and does nothing. So a thread that
fails unexpectedly ends its process, with a traceback in the log and the exit code that leads to a restart. A
task of the web process reports its failure to the code that ends that process.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from .. import exit_codes

log = logging.getLogger(__name__)


def start_thread(name: str, work: Callable[[], None]) -> threading.Thread:
    """Starts a daemon thread; an exception on it ends the process with `ENGINE_LOST`."""

    def run() -> None:
        try:
            work()
        except BaseException:
            log.exception("the thread %s failed; the process ends", name)
            sys.stderr.flush()
            os._exit(exit_codes.ENGINE_LOST)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def start_task(
    name: str, work: Coroutine[Any, Any, None], failed: Callable[[str], None]
) -> asyncio.Task[None]:
    """Starts a task; an exception in it is logged, and `failed` is called with a message about it."""

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("the task %s failed", name, exc_info=error)
            failed(f"unexpected {type(error).__name__} in the task {name}")

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task
