"""Several processes run the same steps in the same order: the leader says which, the followers do as it does.

The leader's engine plans as if it were alone. Each step that its runner launches goes, packed as it is, into
the followers' queues before it is dispatched here, and is never waited for. Followers launch it on their
shares; the step's own collectives keep the devices together. One step late each follower reports a hash of
what was sampled, which every process has; a difference means that they have drifted apart, and ends all.
"""

import contextlib
import hashlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from ...model.errors import ConfigError
from ..device.processes import leave, share_address
from ..device.runner import Runner
from ..device.sampling import Samples
from ..options import Membership
from .control import Digest, Failed, Frame, Goodbye, HandshakeFailed, Launch, Lost, Peer, Prepare, handshake

log = logging.getLogger(__name__)

_LEADER, _FOLLOWER = b"leader", b"follower"
_CONNECT_SECONDS = 60.0
_CLOSE_SECONDS = 3.0
_TICK_SECONDS = 0.05
_MAX_HANDSHAKES = 64
"""Connections that may be proving themselves at the same time; more are closed at once."""


def digest_of(token_B: np.ndarray) -> bytes:
    """A hash of sampled ids."""
    return hashlib.blake2b(np.ascontiguousarray(token_B).tobytes(), digest_size=8).digest()


def _listen(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0))
    except OSError as error:
        raise ConfigError(
            f"coordinator host is {host!r}; expected an address of process 0 ({error})"
        ) from None


def _accept_followers(
    listener: socket.socket, secret: bytes, count: int
) -> Iterator[tuple[int, socket.socket]]:
    """Yields so many who prove that they know the secret, with their numbers.

    Each is greeted in a thread of its own, so that a stranger who stalls keeps nobody waiting.

    Raises:
      HandshakeFailed: not all came in time.
    """
    arrived: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()
    room = threading.BoundedSemaphore(_MAX_HANDSHAKES)

    def authenticate(connection: socket.socket, host: str) -> None:
        try:
            arrived.put((handshake(connection, secret, _LEADER, _FOLLOWER), connection))
        except HandshakeFailed as stranger:
            log.warning("turned away %s: %s", host, stranger)
            connection.close()
        finally:
            room.release()

    listener.settimeout(_TICK_SECONDS)
    deadline = time.monotonic() + _CONNECT_SECONDS
    while count and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            connection, address = listener.accept()
            if room.acquire(blocking=False):
                threading.Thread(target=authenticate, args=(connection, address[0]), daemon=True).start()
            else:
                connection.close()
        with contextlib.suppress(queue.Empty):
            yield arrived.get_nowait()
            count -= 1
    if count:
        raise HandshakeFailed(f"{count} followers have not come within {_CONNECT_SECONDS:.0f} s")


def _send_failure(peers: list[Peer], reason: str, code: int) -> None:
    """The last word of a process that ends: waits until it is written, or a moment."""
    for peer in peers:
        peer.send(Failed(reason, code))
        peer.close()
    for peer in peers:
        peer.written.wait(_CLOSE_SECONDS)


class Leader:
    """The followers, seen from process 0. A runner tells it of every launch.

    `launch` and `prepare` come from the engine's thread, `record_samples` too; none of them waits.
    """

    def __init__(self, membership: Membership, lost: Lost) -> None:
        """Waits until every follower has come and proved that it knows the secret.

        Raises:
          HandshakeFailed: not all came.
        """
        self._lost = lost
        self._numbers, self._recorded, self._closed = 0, 0, False
        self._peers: list[Peer] = []
        self._unmatched: dict[int, bytes] = {}
        self._early: dict[int, list[tuple[str, bytes]]] = {}
        self._lock, self._ending = threading.Lock(), threading.Lock()
        self._departed = threading.Semaphore(0)
        with _listen(membership.host) as listener:
            _, secret = share_address(listener.getsockname()[1])
            for number, connection in _accept_followers(listener, secret, membership.processes - 1):
                name = f"process {number} at {connection.getpeername()[0]}"
                self._peers.append(Peer(connection, name, partial(self._receive, name), self._peer_lost))

    def launch(self, bucket: int, buffer: np.ndarray) -> None:
        """Tells everybody of a step that is about to be dispatched here."""
        self._send(Launch(self._numbers, bucket, buffer.tobytes()))
        self._numbers += 1

    def prepare(self, slot: int, bias_V: np.ndarray, marks_V: np.ndarray) -> None:
        """Tells everybody what a slot is made ready with."""
        self._send(Prepare(slot, bias_V.tobytes(), marks_V.tobytes()))

    def record_samples(self, token_B: np.ndarray) -> None:
        """Notes what the oldest step that is not settled has sampled here."""
        with self._lock:
            number, digest = self._recorded, digest_of(token_B)
            self._recorded += 1
            for name, theirs in self._early.pop(number, []):
                self._compare(name, number, digest, theirs)
            self._unmatched[number] = digest
            for old in [n for n in self._unmatched if n < number - 1024]:
                del self._unmatched[old]

    def fail(self, reason: str, code: int) -> None:
        """Tells everybody that this process cannot go on, and with which exit code it ends."""
        _send_failure(self._peers, reason, code)

    def close(self) -> None:
        """Says that all is well, and lets the followers go first. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._send(Goodbye())
        for peer in self._peers:
            peer.close()
        for _ in self._peers:
            self._departed.acquire(timeout=_CLOSE_SECONDS)
        leave()

    def _send(self, frame: Frame) -> None:
        for peer in self._peers:
            peer.send(frame)

    def _receive(self, name: str, frame: Frame) -> None:
        if isinstance(frame, Goodbye):
            self._departed.release()
        if isinstance(frame, Digest):
            with self._lock:
                if frame.number in self._unmatched:
                    self._compare(name, frame.number, self._unmatched[frame.number], frame.digest)
                elif frame.number >= self._recorded:
                    self._early.setdefault(frame.number, []).append((name, frame.digest))

    def _compare(self, name: str, number: int, ours: bytes, theirs: bytes) -> None:
        if ours != theirs:
            self._peer_lost(f"{name} sampled other tokens in step {number}; the processes have drifted apart")

    def _peer_lost(self, reason: str, code: int | None = None) -> None:
        """Nobody can go on: the others hear why before this process ends. What follows from it is no news."""
        if not self._ending.acquire(blocking=False):
            return
        self._send(Failed(reason, code))
        self._lost(reason, code)


class Follower:
    """A process that does as the leader does, until it says goodbye or is lost."""

    def __init__(self, membership: Membership, lost: Lost) -> None:
        """Finds the leader.

        Raises:
          HandshakeFailed: it does not prove that it knows the secret, or is not there.
        """
        port, secret = share_address(None)
        try:
            connection = socket.create_connection((membership.host, port), _CONNECT_SECONDS)
        except OSError as error:
            raise HandshakeFailed(
                f"the leader at {membership.host}:{port} cannot be reached ({error})"
            ) from None
        handshake(connection, secret, _FOLLOWER, _LEADER, membership.process)
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[tuple[int, Samples]] = queue.SimpleQueue()
        self._peer = Peer(connection, "the leader", self._frames.put, lost)

    def fail(self, reason: str, code: int) -> None:
        """Tells the leader that this process cannot go on, and with which exit code it ends."""
        _send_failure([self._peer], reason, code)

    def run(self, runner: Runner) -> None:
        """Launches what the leader launches; returns when it says goodbye."""
        threading.Thread(target=self._report, name="digests", daemon=True).start()
        while not isinstance(frame := self._frames.get(), Goodbye):
            if isinstance(frame, Launch):
                samples = runner.replay(frame.bucket, np.frombuffer(frame.buffer, np.int32))
                self._launched.put((frame.number, samples))
            elif isinstance(frame, Prepare):
                bias_V = np.frombuffer(frame.bias, np.float32)
                runner.prepare(frame.slot, bias_V, np.frombuffer(frame.marks, np.uint8))
        self._peer.send(Goodbye())
        self._peer.close()
        leave()

    def _report(self) -> None:
        """Waits for each step, off the path of the launches, and tells the leader what it sampled."""
        try:
            while True:
                number, samples = self._launched.get()
                self._peer.send(Digest(number, digest_of(np.asarray(samples.token_B))))
        except Exception as error:
            log.exception("what a step sampled could not be reported")
            self._peer.end(f"a step's samples could not be reported: {type(error).__name__}")
