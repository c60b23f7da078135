"""Shows the progress of a long task: bars on a terminal, otherwise a line every few seconds."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

_COUNTED = ("compile", "lines")
"""Phases whose steps are counted; of all others, the bytes are."""
LINE_SECONDS = 5.0
"""Seconds between two lines of a phase, without a terminal."""


class ProgressDisplay(Protocol):
    """The interface of a progress display."""

    def show(self, phase: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done; a total of 0 is unknown."""
        ...

    def close(self) -> None:
        """Ends the display, for good or for now. Idempotent."""
        ...


def progress_display() -> ProgressDisplay:
    """The display for this process's stderr."""
    return Bars(Console(stderr=True)) if sys.stderr.isatty() else Lines()


def amount(phase: str, done: int, total: int) -> str:
    """`12.0 MB of 93.1 MB`, or `3 of 10`."""
    write = str if phase in _COUNTED else decimal
    return f"{write(done)} of {write(total)}" if total else write(done)


class Bars:
    """One bar for each phase. Log lines scroll above the bars."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def show(self, phase: str, done: int, total: int) -> None:
        """Updates the phase's bar."""
        live = self._live or self._open()
        if phase not in self._bars:
            self._bars[phase] = live.add_task(phase, total=None, amount="")
        text = amount(phase, done, total)
        live.update(self._bars[phase], completed=done, total=total or None, amount=text)

    def close(self) -> None:
        """Stops updating the bars and releases the terminal."""
        if self._live:
            self._live.stop()
        self._live, self._bars = None, {}

    def _open(self) -> Progress:
        columns = (TextColumn("{task.description:>8}"), BarColumn(), TextColumn("{task.fields[amount]}"))
        self._live = Progress(*columns, TimeElapsedColumn(), console=self._console)
        self._live.start()
        return self._live


class Lines:
    """A log line at the first update of a phase, and then at most one every LINE_SECONDS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._phase = ""
        self._due = 0.0

    def show(self, phase: str, done: int, total: int) -> None:
        """Logs a line if one is due."""
        now = self._clock()
        if phase != self._phase or now >= self._due:
            self._phase, self._due = phase, now + LINE_SECONDS
            log.info("%s: %s", phase, amount(phase, done, total))

    def close(self) -> None:
        """Resets the display for the next phase."""
        self._phase = ""
