"""The connection between the leader of several processes and a follower: typed frames, a secret, heartbeats.

It knows nothing about steps or devices. Sending never waits, especially not for a device. A peer is lost when
its end closes, when it sends an invalid frame, or when it has been silent for too long. No JAX.
"""

import hmac
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ...model.errors import DistaffError
from ..framing import FramedPeer, FrameReader, with_length

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 7.0
"""A peer that has sent nothing for this time is lost; so all processes know within ten seconds."""
HANDSHAKE_SECONDS = 10.0
"""The time for a whole handshake, even if the peer sends its bytes slowly."""

_NONCE = 32
_LONGEST = 64 << 20
_NUMBER = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all frames, tagged with the class's name."""


class Launch(Frame, frozen=True):
    """Leader: run this bucket's step on this buffer (i32, as bytes), after all earlier frames."""

    number: int
    bucket: int
    buffer: bytes


class Prepare(Frame, frozen=True):
    """Leader: prepare this slot, with a count (i32), a bias (f32) and marks (u8) for each id, as bytes."""

    slot: int
    counts: bytes
    bias: bytes
    marks: bytes


class Digest(Frame, frozen=True):
    """Follower: a hash of the tokens that a step sampled."""

    number: int
    digest: bytes


class Beat(Frame, frozen=True):
    """Either: a heartbeat."""


class Goodbye(Frame, frozen=True):
    """Either: the last frame of an orderly end."""


class Failed(Frame, frozen=True):
    """Either: this process has failed, so all processes must end.

    Attributes:
      code: the exit code for all processes; None if the loss of this process is the only reason.
    """

    reason: str
    code: int | None = None


Lost = Callable[[str, int | None], None]
"""Called once with the reason to end this process, and the exit code if there is one; must end it."""


_DECODER = msgspec.msgpack.Decoder(Launch | Prepare | Digest | Beat | Goodbye | Failed)
_ENCODER = msgspec.msgpack.Encoder()


class HandshakeFailed(DistaffError):
    """A peer does not prove that it knows the secret, or cannot be reached."""


def handshake(connection: socket.socket, secret: bytes, own: bytes, theirs: bytes, process: int = 0) -> int:
    """Both ends prove that they know the secret.

    Args:
      own, theirs: names of the two roles. process: this process's number.

    Returns:
      The peer's process number, which its proof includes.

    Raises:
      HandshakeFailed: the peer does not prove it within the time limit.
    """
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    try:
        nonce, number = secrets.token_bytes(_NONCE), _NUMBER.pack(process)
        connection.settimeout(HANDSHAKE_SECONDS)
        connection.sendall(nonce + number)
        their_nonce = _exactly(connection, _NONCE, deadline)
        their_number = _exactly(connection, _NUMBER.size, deadline)
        connection.sendall(_proof(secret, own + number, their_nonce))
        proof = _exactly(connection, _NONCE, deadline)
        if not hmac.compare_digest(proof, _proof(secret, theirs + their_number, nonce)):
            raise HandshakeFailed("a peer on the control connection does not know the secret")
    except OSError as error:
        raise HandshakeFailed(f"a peer on the control connection sent no proof ({error})") from None
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _NUMBER.unpack(their_number)[0]


def _proof(secret: bytes, role: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + nonce, "sha256")


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)


class Peer(FramedPeer[Any]):
    """One end of a greeted connection. Any thread may `send`.

    Attributes:
      name: what errors call the other end.
    """

    def __init__(
        self, connection: socket.socket, name: str, receive: Callable[[Any], None], lost: Lost
    ) -> None:
        """Starts to read, to write and to send heartbeats.

        Args:
          receive: called with every frame except heartbeats and failures, on the reading thread.
          lost: called with the reason when the peer is gone, unless one of both has sent a Goodbye.
        """
        self.name = name
        self._lost, self._closing = lost, threading.Event()
        self._frames_read, self._parting = 0, False
        super().__init__(connection, FrameReader(_DECODER.decode, _LONGEST), receive)
        self._start("watch", self._watch)

    def send(self, frame: Frame) -> None:
        """Queues a frame; never waits."""
        self._send(with_length(_ENCODER.encode(frame), _LONGEST))

    def close(self) -> None:
        """Sends what is queued, then ends the connection; from here on the peer may go."""
        self._closing.set()
        super().close()

    def end(self, reason: str, code: int | None = None) -> None:
        """The peer is gone, or must be."""
        if not self._closing.is_set():
            self._closing.set()
            self._lost(reason, code)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        threading.Thread(target=self._run, args=(work,), name=f"control_{name}", daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        """One thread's work. If it fails, the peer counts as lost."""
        try:
            work()
        except Exception as error:
            log.exception("a thread of the connection to %s failed", self.name)
            self.end(f"{self.name} is lost: unexpected {type(error).__name__} on our side")

    def _ended(self, error: Exception | None) -> None:
        self.end(f"{self.name} is lost: {error or 'it closed the connection'}")
        if not self._parting:  # after a goodbye our own is still to be written, and `close` ends the writing
            super().close()

    def _handle(self, frame: Any) -> None:
        self._frames_read += 1
        match frame:
            case Beat():
                return
            case Failed(reason, code):
                self.end(f"{self.name} failed: {reason}", code)
                return
            case Goodbye():
                self._parting = True
                self._closing.set()  # from here on the peer may go
        self._receive(frame)

    def _watch(self) -> None:
        """Sends heartbeats, and counts the peer's silence, only while this process runs."""
        silence, read, before = 0.0, self._frames_read, time.monotonic()
        while not self._closing.wait(BEAT_SECONDS):
            self.send(Beat())
            now = time.monotonic()
            silence += min(now - before, 2 * BEAT_SECONDS)
            before = now
            if self._frames_read != read:
                silence, read = 0.0, self._frames_read
            if silence >= SILENCE_SECONDS:
                self.end(f"{self.name} is lost: silent for {silence:.0f} s")
