"""The connection between the leader of several processes and a follower: typed frames, a secret, heartbeats.

Knows nothing of steps or devices. Each end has a thread that writes what is queued and one that reads; nobody
who sends ever waits, least of all for a device. A peer is lost when its end closes, when it sends what is no
frame, or when it has been silent for too long. No JAX.
"""

import hmac
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..model.errors import DistaffError

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 8.0
"""A peer that has said nothing for so long is lost: within ten seconds everybody has heard of it."""
GREETING_SECONDS = 10.0

_NONCE = 32
_LONGEST = 64 << 20
_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all frames; told apart by the class's name."""


class Launch(Frame, frozen=True):
    """Leader: run this bucket's step on this buffer (i32, as bytes), after all that came before."""

    number: int
    bucket: int
    buffer: bytes


class Forget(Frame, frozen=True):
    """Leader: clear this slot's counts."""

    slot: int


class Digest(Frame, frozen=True):
    """Follower: what a step sampled, as a hash."""

    number: int
    digest: bytes


class Beat(Frame, frozen=True):
    """Either: I am here."""


class Goodbye(Frame, frozen=True):
    """Either: nothing more will come from here; all is well."""


_DECODER = msgspec.msgpack.Decoder(Launch | Forget | Digest | Beat | Goodbye)
_ENCODER = msgspec.msgpack.Encoder()


class Stranger(DistaffError):
    """Who connected does not know the secret."""


def greet(connection: socket.socket, secret: bytes, own: bytes, theirs: bytes) -> None:
    """Both ends prove that they know the secret; `own` and `theirs` name the two roles.

    Raises:
      Stranger: the peer does not prove it, within the time for it.
    """
    connection.settimeout(GREETING_SECONDS)
    try:
        nonce = secrets.token_bytes(_NONCE)
        connection.sendall(nonce)
        their_nonce = _exactly(connection, _NONCE)
        connection.sendall(_proof(secret, own, their_nonce))
        if not hmac.compare_digest(_exactly(connection, _NONCE), _proof(secret, theirs, nonce)):
            raise Stranger("a peer on the control connection does not know the secret")
    except OSError as error:
        raise Stranger(f"a peer on the control connection fell silent ({error})") from None
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _proof(secret: bytes, role: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + nonce, "sha256")


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)


class Peer:
    """One end of a greeted connection. Any thread may `send`.

    Attributes:
      name: what errors call the other end.
    """

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        receive: Callable[[Any], None],
        lost: Callable[[str], None],
    ) -> None:
        """Starts to read, to write and to beat.

        Args:
          receive: hears every frame but beats, on the reading thread.
          lost: is told once why the peer is gone, unless `close` came first.
        """
        self.name = name
        self._connection, self._receive, self._lost = connection, receive, lost
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard = time.monotonic()
        self._closing = threading.Event()
        for work in (self._read, self._write, self._watch):
            threading.Thread(target=work, name=f"control{work.__name__}", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Queues a frame; never waits."""
        body = _ENCODER.encode(frame)
        self._outbox.put(_LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        """Sends what is queued, then ends the connection; from here on the peer may go."""
        self._closing.set()
        self._outbox.put(None)

    def end(self, reason: str) -> None:
        """The peer is gone, or must be."""
        if not self._closing.is_set():
            self._closing.set()
            self._lost(reason)

    def _write(self) -> None:
        try:
            while (data := self._outbox.get()) is not None:
                self._connection.sendall(data)
            self._connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.end(f"{self.name} is lost: {error}")

    def _read(self) -> None:
        try:
            for frame in self._frames():
                if isinstance(frame, Goodbye):
                    self._closing.set()  # from here on the peer may go
                if not isinstance(frame, Beat):
                    self._receive(frame)
            self.end(f"{self.name} is lost: it closed the connection")
        except (OSError, msgspec.DecodeError, ValueError) as error:
            self.end(f"{self.name} is lost: {error}")
        finally:
            self._connection.close()

    def _frames(self) -> Iterator[Any]:
        while True:
            try:
                (length,) = _LENGTH.unpack(_exactly(self._connection, _LENGTH.size))
            except ConnectionError:
                return
            if length > _LONGEST:
                raise ValueError(f"a frame of {length} bytes; expected at most {_LONGEST}")
            frame = _DECODER.decode(_exactly(self._connection, length))
            self._heard = time.monotonic()
            yield frame

    def _watch(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self.send(Beat())
            silence = time.monotonic() - self._heard
            if silence > SILENCE_SECONDS:
                self.end(f"{self.name} is lost: silent for {silence:.0f} s")
