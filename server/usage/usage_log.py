"""`UsageLog`: a line of JSON for each call, in a file that programs for billing read. Never a text or a key.

Lines are appended by a thread, so that a slow disk delays no answer. The file is opened again when its path
names another file or none, so logrotate may move it; it may also truncate it. A full disk loses lines and
fails no request; that is logged at the first one, and their number when all that waits is written again.
"""

import logging
import os
import queue
import threading
import time
from pathlib import Path

import msgspec

from ...model.errors import DistaffError
from ..process.vital import start_thread

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""The most lines that wait to be written; further ones are lost."""
LOOK_SECONDS = 1.0
"""The interval of checks whether the path still names the open file."""
_CLOSE_SECONDS = 5.0
_MODE = 0o640


class UsageLogRefused(DistaffError):
    """The file cannot be opened."""


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """One call.

    Attributes:
      time: of its end, in Unix seconds. request_id: `x-request-id` of its answer.
      key: the id of its API key, name: that in the keys file; empty if there is none.
      batch: whether it is a line of a batch.
      queue_seconds, first_token_seconds: None if no sequence began, or no output came.
      seconds: from the arrival to the end of the answer. finish: why each choice ended.
    """

    time: float
    request_id: str
    key: str
    name: str
    model: str
    route: str
    priority: int
    batch: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    device_seconds: float
    page_seconds: float
    queue_seconds: float | None
    first_token_seconds: float | None
    seconds: float
    finish: list[str]


class UsageLog:
    """The file, and the thread that writes to it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, and creates it if there is none. Raises UsageLogRefused."""
        self._path = path
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._lost, self._counting = 0, threading.Lock()
        self._torn = False
        self._next_look = 0.0
        try:
            self._file = self._open()
        except OSError as error:
            raise UsageLogRefused(f"cannot append to {path}: {error.strerror}") from None
        self._thread = start_thread("usage log", self._run)

    def write(self, line: UsageLine) -> None:
        """Queues a line; never waits, never raises."""
        try:
            self._lines.put_nowait(msgspec.json.encode(line) + b"\n")
        except queue.Full:
            self._lose(1, f"more than {MOST_WAITING} lines wait")

    def close(self) -> None:
        """Writes what is queued, as far as that takes no longer than some seconds, and ends the thread."""
        try:
            self._lines.put(None, timeout=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)
        except queue.Full:
            self._lose(self._lines.qsize(), "the disk is too slow")

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._follow_path()
                self._append(line)
                if self._lines.empty():
                    self._recover()
            except OSError as error:
                self._lose(1, error.strerror or str(error))
        self._recover()
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        """Appends a line. After one of which only a part was written, it begins on a line of its own."""
        data = b"\n" + line if self._torn else line
        written = os.write(self._file, data)
        self._torn = (self._torn and not written) or 0 < written < len(data)
        if written < len(data):
            raise OSError(0, f"only {written} of {len(data)} bytes could be written")

    def _follow_path(self) -> None:
        """Opens the path again if it names another file than the open one."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        try:
            there, ours = os.stat(self._path), os.fstat(self._file)
            same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            same = False
        if not same:
            replaced, self._file = self._file, self._open()
            self._torn = False
            os.close(replaced)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def _lose(self, lines: int, reason: str) -> None:
        """Counts lines that are lost, and logs the first ones."""
        with self._counting:
            first, self._lost = not self._lost, self._lost + lines
        if first:
            log.error("lines of the usage log %s are lost: %s", self._path, reason)

    def _recover(self) -> None:
        """Logs how many lines were lost since the last time, if any."""
        with self._counting:
            lost, self._lost = self._lost, 0
        if lost:
            log.error("%d lines of the usage log %s were lost", lost, self._path)
