"""The engine process's end of the socketpair: it sends and receives frames, and ends with the web process.

Neither direction blocks the engine's loop: each has a thread, and the queue of what is sent is bounded. The
end of the stream means that the web process is gone. Then this process ends, whatever it is doing, and so it
does if either thread fails: nothing could reach it any more.
"""

import logging
import os
import queue
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from ...runtime.framing import FramedPeer, WireError
from .. import exit_codes
from ..engines import wire
from ..process.vital import start_thread

log = logging.getLogger(__name__)

MAX_BEHIND = 4096
"""Frames that the web process may lag behind, a minute or more of steps, before this process ends."""

_WEB_IS_GONE = 0
"""The exit code when no process is left to read it."""


class Channel(FramedPeer[wire.ToEngine]):
    """Frames to and from the web process.

    Threads: any may `send`; `receive` is called from the channel's own reading thread.
    """

    def __init__(self, connection: socket.socket, receive: Callable[[wire.ToEngine], None]) -> None:
        """Starts to read and write at once; `receive` is called with every frame, and must not block."""
        super().__init__(connection, wire.engine_reader(), receive, MAX_BEHIND)

    def send(self, frame: wire.ToWeb) -> None:
        """Queues a frame; never blocks. If the web lags MAX_BEHIND frames behind, ends the process.

        Raises:
          WireError: the frame is too long to be sent.
        """
        data = wire.encode(frame)
        try:
            self._send(data)
        except queue.Full:
            _end(f"the web process has not read for {MAX_BEHIND} frames; the engine ends")

    def offer(self, frame: wire.ToWeb) -> None:
        """Queues a frame unless others wait: for news that are soon replaced by newer ones."""
        if self._outbox.empty():
            self.send(frame)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        start_thread(f"channel_{name}", work)

    def _ended(self, error: Exception | None) -> NoReturn:
        if isinstance(error, WireError):
            _end(f"the engine cannot understand the web process and ends: {error}")
        if error and not isinstance(error, ConnectionError):
            raise error
        os._exit(_WEB_IS_GONE)


def _end(reason: str) -> NoReturn:
    """Ends the process, as its web process cannot use it; a new one may work."""
    log.error("%s", reason)
    sys.stderr.flush()
    os._exit(exit_codes.ENGINE_LOST)
