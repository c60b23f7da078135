"""The engine process's end of the socketpair: frames in, frames out, and its own death when the web is gone.

Neither side of it ever makes the engine's loop wait. What the engine says goes into a bounded queue that one
thread writes out; what the web says is read by another thread and handed to a function. The end of the
stream means that the web process is gone, and then this process has no reason to live, whatever it is doing:
loading weights, compiling or waiting for the device.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable

from . import wire

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
            threading.Thread(target=work, name=f"channel{work.__name__}", daemon=True).start()

    def send(self, frame: wire.ToWeb) -> None:
        """Queues a frame; never blocks. If the web lags MAX_BEHIND frames behind, ends the process."""
        try:
            self._outbox.put_nowait(wire.encode(frame))
        except queue.Full:
            log.error("the web process has not read for %d frames; the engine ends", MAX_BEHIND)
            os._exit(_WEB_IS_GONE)

    def offer(self, frame: wire.ToWeb) -> None:
        """Queues a frame unless others wait: for news that are soon replaced by newer ones."""
        if self._outbox.empty():
            self.send(frame)

    def flush(self) -> None:
        """Waits until all that was sent is in the socket."""
        self._outbox.join()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reading thread hears of it too, and ends the process
            while True:
                self._connection.sendall(self._outbox.get())
                self._outbox.task_done()

    def _read(self) -> None:
        reader = wire.engine_reader()
        try:
            while data := self._connection.recv(_RECEIVE_BYTES):
                for frame in reader.feed(data):
                    self._receive(frame)
        except OSError:
            pass
        except wire.WireError as error:
            log.error("the engine cannot understand the web process and ends: %s", error)
        os._exit(_WEB_IS_GONE)
