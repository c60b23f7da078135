"""The engine process's end of the socketpair: frames in, frames out, and its own death when the web is gone.

Neither side of it ever makes the engine's loop wait. What the engine says goes into a bounded queue that one
thread writes out; what the web says is read by another thread and handed to a function. The end of the
stream means that the web process is gone, and then this process has no reason to live, whatever it is doing:
loading weights, compiling or waiting for the device. Nor has it one if either thread fails: nobody could
reach it any more.
"""

import logging
import os
import queue
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from .. import exit_codes
from ..engines import wire
from ..vital import start_thread

log = logging.getLogger(__name__)

MAX_BEHIND = 4096
"""Frames the web may lag behind, a minute or more of steps, before it is given up."""

_RECEIVE_BYTES = 1 << 16
_WEB_IS_GONE = 0
"""The exit code when nobody is left to read it."""


class Channel:
    """Frames to and from the web process.

    Threads: any may `send`; `receive` is called from the channel's own reading thread.
    """

    def __init__(self, connection: socket.socket, receive: Callable[[wire.ToEngine], None]) -> None:
        """Starts to read and write at once.

        Args:
          receive: hears every frame from the web; must not block.
        """
        self._connection = connection
        self._receive = receive
        self._outbox: queue.Queue[bytes] = queue.Queue(MAX_BEHIND)
        for work in (self._read, self._write):
            start_thread(f"channel{work.__name__}", work)

    def send(self, frame: wire.ToWeb) -> None:
        """Queues a frame; never blocks. If the web lags MAX_BEHIND frames behind, ends the process.

        Raises:
          WireError: the frame is too long to be sent.
        """
        data = wire.encode(frame)
        try:
            self._outbox.put_nowait(data)
        except queue.Full:
            _end(f"the web process has not read for {MAX_BEHIND} frames; the engine ends")

    def offer(self, frame: wire.ToWeb) -> None:
        """Queues a frame unless others wait: for news that are soon replaced by newer ones."""
        if self._outbox.empty():
            self.send(frame)

    def flush(self) -> None:
        """Waits until all that was sent is in the socket."""
        self._outbox.join()

    def _write(self) -> None:
        try:
            while True:
                self._connection.sendall(self._outbox.get())
                self._outbox.task_done()
        except OSError:
            pass  # the reading thread finds the connection closed too, and ends the process

    def _read(self) -> None:
        reader = wire.engine_reader()
        try:
            while data := self._connection.recv(_RECEIVE_BYTES):
                for frame in reader.feed(data):
                    self._receive(frame)
        except ConnectionError:
            pass
        except wire.WireError as error:
            _end(f"the engine cannot understand the web process and ends: {error}")
        os._exit(_WEB_IS_GONE)


def _end(reason: str) -> NoReturn:
    """The web process is there and cannot be talked to: what it starts next may do better."""
    log.error("%s", reason)
    sys.stderr.flush()
    os._exit(exit_codes.ENGINE_LOST)
