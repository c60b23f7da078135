"""Several processes run the same steps in the same order: the leader decides, the followers repeat.

The leader's engine plans as if it were alone. Its runner puts each packed step into the followers' queues
before dispatching it, and never waits for them. Followers launch the step on their shares; the collectives in
the step keep the devices together. Later each follower reports a hash of the sampled tokens, which every
process has. If hashes differ, the processes have diverged, and all end.
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
"""The maximum number of handshakes at the same time; more connections are closed at once."""


def digest_of(token_B: np.ndarray) -> bytes:
    """A hash of the sampled ids."""
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
    """Yields `count` followers that prove that they know the secret, each with its process number.

    Each handshake has its own thread, so that a slow peer does not delay the others.

    Raises:
      HandshakeFailed: not all followers have connected in time.
    """
    arrived: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()
    room = threading.BoundedSemaphore(_MAX_HANDSHAKES)

    def authenticate(connection: socket.socket, host: str) -> None:
        try:
            arrived.put((handshake(connection, secret, _LEADER, _FOLLOWER), connection))
        except HandshakeFailed as error:
            log.warning("rejected a connection from %s: %s", host, error)
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
        raise HandshakeFailed(f"{count} followers have not connected within {_CONNECT_SECONDS:.0f} s")


def _send_failure(peers: list[Peer], reason: str, code: int) -> None:
    """Sends the failure of a process that ends; waits until it is written, for a short time."""
    for peer in peers:
        peer.send(Failed(reason, code))
        peer.close()
    for peer in peers:
        peer.written.wait(_CLOSE_SECONDS)


class Leader:
    """The connections of process 0 to its followers. The runner reports every launch to it.

    The engine's thread calls `launch`, `prepare` and `record_samples`; none of them waits.
    """

    def __init__(self, membership: Membership, lost: Lost) -> None:
        """Waits until every follower has connected and proved that it knows the secret.

        Raises:
          HandshakeFailed: not all have connected.
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
        """Sends a step to all followers, before it is dispatched here."""
        self._send(Launch(self._numbers, bucket, buffer.tobytes()))
        self._numbers += 1

    def prepare(self, slot: int, counts_V: np.ndarray, bias_V: np.ndarray, marks_V: np.ndarray) -> None:
        """Sends the values of a prepared slot to all followers."""
        self._send(Prepare(slot, counts_V.tobytes(), bias_V.tobytes(), marks_V.tobytes()))

    def record_samples(self, token_B: np.ndarray) -> None:
        """Records the samples of the next step here, in the order of launches."""
        with self._lock:
            number, digest = self._recorded, digest_of(token_B)
            self._recorded += 1
            for name, theirs in self._early.pop(number, []):
                self._compare(name, number, digest, theirs)
            self._unmatched[number] = digest
            for old in [n for n in self._unmatched if n < number - 1024]:
                del self._unmatched[old]

    def fail(self, reason: str, code: int) -> None:
        """Sends the failure of this process to all followers, with its exit code."""
        _send_failure(self._peers, reason, code)

    def close(self) -> None:
        """Ends the session in order, followers first. Idempotent."""
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
            self._peer_lost(f"{name} sampled other tokens in step {number}; the processes have diverged")

    def _peer_lost(self, reason: str, code: int | None = None) -> None:
        """Sends the reason to the others, then ends this process; later reasons are ignored."""
        if not self._ending.acquire(blocking=False):
            return
        self._send(Failed(reason, code))
        self._lost(reason, code)


class Follower:
    """A process that repeats the leader's steps until the leader ends the session or is lost."""

    def __init__(self, membership: Membership, lost: Lost) -> None:
        """Connects to the leader.

        Raises:
          HandshakeFailed: it does not prove that it knows the secret, or cannot be reached.
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
        """Sends the failure of this process to the leader, with its exit code."""
        _send_failure([self._peer], reason, code)

    def run(self, runner: Runner) -> None:
        """Launches each step of the leader; returns after its goodbye."""
        threading.Thread(target=self._report_samples, name="digests", daemon=True).start()
        while not isinstance(frame := self._frames.get(), Goodbye):
            if isinstance(frame, Launch):
                samples = runner.replay(frame.bucket, np.frombuffer(frame.buffer, np.int32))
                self._launched.put((frame.number, samples))
            elif isinstance(frame, Prepare):
                counts_V = np.frombuffer(frame.counts, np.int32)
                bias_V = np.frombuffer(frame.bias, np.float32)
                runner.prepare(frame.slot, counts_V, bias_V, np.frombuffer(frame.marks, np.uint8))
        self._peer.send(Goodbye())
        self._peer.close()
        leave()

    def _report_samples(self) -> None:
        """Reports the samples of each step to the leader, in a thread that does not delay launches."""
        try:
            while True:
                number, samples = self._launched.get()
                self._peer.send(Digest(number, digest_of(np.asarray(samples.token_B))))
        except Exception as error:
            log.exception("the samples of a step cannot be reported")
            self._peer.end(f"the samples of a step cannot be reported: {type(error).__name__}")
