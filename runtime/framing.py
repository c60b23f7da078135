"""Frames over a socket: a length of 4 bytes, big-endian, and that many bytes of msgpack or JSON.

The typed frames, their encoders and their limits are with each connection: the engine process's, a renderer's
and the one between several hosts. What an invalid frame or a lost connection means is decided there too. This
module only converts frames to bytes and back, over any kind of socket, and never unpickles. No JAX.
"""

import contextlib
import queue
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from ..model.errors import DistaffError

FrameT = TypeVar("FrameT")

_LENGTH_BYTES = 4
_RECEIVE_BYTES = 1 << 18


class Frame(msgspec.Struct, frozen=True, tag=True):
    """Base of frames: immutable, tagged with the class's name."""


class WireError(Exception):
    """Bytes that are not a valid frame: the peer is broken or has another version."""


class TooLong(WireError):
    """A frame that is too long to be sent; the message is its length and the longest allowed."""


def with_length(body: bytes, longest: int) -> bytes:
    """An encoded frame with its length in front. Raises TooLong: it has more than `longest` bytes."""
    if len(body) > longest:
        raise TooLong(f"{len(body)} bytes; the most is {longest}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader(Generic[FrameT]):
    """Cuts a stream of bytes, which arrives in any pieces, into frames of at most `longest` bytes."""

    def __init__(self, decode: Callable[[bytes], FrameT], longest: int) -> None:
        self._decode, self._longest = decode, longest
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[FrameT]:
        """Yields the frames that `data` completes. Raises WireError: a length beyond the limit, or an invalid
        body; what follows cannot be trusted either."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > self._longest:
                raise WireError(f"a frame of {length} bytes was announced; the most is {self._longest}")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[_LENGTH_BYTES:end])
            del self._buffer[:end]
            yield self._decoded(body)

    def _decoded(self, body: bytes) -> FrameT:
        try:
            return self._decode(body)
        except (msgspec.DecodeError, DistaffError, RecursionError, UnicodeDecodeError) as error:
            raise WireError(f"a frame of {len(body)} bytes cannot be read: {error}") from error


def received(connection: socket.socket, reader: FrameReader[FrameT]) -> Iterator[FrameT]:
    """Yields the frames that arrive on a blocking socket until the other side closes; drops a partial one.

    Raises WireError as `FrameReader.feed`, OSError: the connection is broken, TimeoutError: the socket's.
    """
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(_RECEIVE_BYTES):
            yield from reader.feed(data)


class FramedPeer(ABC, Generic[FrameT]):
    """One end of a connection, with a thread that reads and one that writes. Any thread may send; none waits.

    Attributes:
      written: set when all frames that were sent before `close` are in the socket, or cannot be.
    """

    def __init__(
        self,
        connection: socket.socket,
        reader: FrameReader[FrameT],
        receive: Callable[[FrameT], None],
        behind: int = 0,
    ) -> None:
        """Starts both threads, so a subclass sets its own fields first.

        Args:
          receive: called with each frame, on the reading thread.
          behind: the most frames that may wait to be written; 0 is no limit.
        """
        self._connection, self._reader, self._receive = connection, reader, receive
        self._outbox: queue.Queue[bytes | None] = queue.Queue(behind)
        self._all_read, self.written = threading.Event(), threading.Event()
        self._start("read", self._read)
        self._start("write", self._write)

    @abstractmethod
    def _start(self, name: str, work: Callable[[], None]) -> None:
        """Starts a daemon thread; handles an exception that `work` raises."""

    @abstractmethod
    def _ended(self, error: Exception | None) -> None:
        """Called by a thread that an OSError or WireError stops; None: the other side has closed."""

    def close(self) -> None:
        """Ends the stream after what is queued. The socket closes when the other side's has ended too."""
        self._outbox.put(None)

    def flush(self) -> None:
        """Waits until all frames that were sent are in the socket."""
        self._outbox.join()

    def _send(self, data: bytes) -> None:
        """Queues an encoded frame. Raises queue.Full: `behind` frames wait."""
        self._outbox.put_nowait(data)

    def _handle(self, frame: FrameT) -> None:
        self._receive(frame)

    def _write(self) -> None:
        try:
            while (data := self._outbox.get()) is not None:
                self._connection.sendall(data)
                self._outbox.task_done()
            self._connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._ended(error)
        self.written.set()
        self._all_read.wait()
        self._connection.close()

    def _read(self) -> None:
        try:
            for frame in received(self._connection, self._reader):
                self._handle(frame)
            self._ended(None)
        except (OSError, WireError) as error:
            self._ended(error)
        self._all_read.set()
