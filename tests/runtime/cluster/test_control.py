"""The control connection: both ends need the secret, frames stay in order, a lost peer is noticed."""

import queue
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.model.errors import ConfigError
from distaff.runtime.cluster import control
from distaff.runtime.cluster.control import (
    Beat,
    Digest,
    Failed,
    Frame,
    Goodbye,
    HandshakeFailed,
    Launch,
    Peer,
    Prepare,
    handshake,
)
from distaff.runtime.options import Membership

SECRET = b"s" * 32


class End:
    """One end of a pair, and what it receives."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.frames: queue.Queue[Frame] = queue.Queue()
        self.losses: queue.Queue[str] = queue.Queue()
        self.codes: list[int | None] = []
        self.peer = Peer(connection, "the other", self.frames.put, self._record_loss)

    def _record_loss(self, reason: str, code: int | None) -> None:
        self.codes.append(code)
        self.losses.put(reason)


@pytest.fixture
def pair() -> Iterator[tuple[End, End]]:
    ours, theirs = socket.socketpair()
    ends = End(ours), End(theirs)
    yield ends
    for end in ends:
        end.peer.close()
    time.sleep(0.01)
    for end in ends:
        end.connection.close()


def both_handshake(first: bytes, second: bytes) -> list[Exception | None]:
    """The result of a handshake between two ends with these secrets."""
    ours, theirs = connected()
    outcome: list[Exception | None] = [None, None]

    def run(place: int, connection: socket.socket, secret: bytes, roles: tuple[bytes, bytes]) -> None:
        try:
            handshake(connection, secret, *roles)
        except HandshakeFailed as error:
            outcome[place] = error
            connection.close()

    threads = [
        threading.Thread(target=run, args=(0, ours, first, (b"a", b"b"))),
        threading.Thread(target=run, args=(1, theirs, second, (b"b", b"a"))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours.close()
    theirs.close()
    return outcome


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def test_equal_secrets_are_accepted() -> None:
    assert both_handshake(SECRET, SECRET) == [None, None]


def test_different_secrets_are_rejected() -> None:
    """By both sides."""
    assert all(isinstance(error, HandshakeFailed) for error in both_handshake(SECRET, b"x" * 32))


def test_an_echo_is_no_proof() -> None:
    """A peer that sends the received bytes back is rejected, because the roles differ."""
    ours, theirs = connected()

    def echo() -> None:
        while data := theirs.recv(4096):
            theirs.sendall(data)

    thread = threading.Thread(target=echo)
    thread.start()
    with pytest.raises(HandshakeFailed, match="does not know the secret"):
        handshake(ours, SECRET, b"leader", b"follower")
    ours.close()
    thread.join()
    theirs.close()


def test_a_silent_peer_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HANDSHAKE_SECONDS", 0.1)
    ours, theirs = connected()
    with pytest.raises(HandshakeFailed, match="sent no proof"):
        handshake(ours, SECRET, b"leader", b"follower")
    ours.close()
    theirs.close()


@given(
    st.lists(
        st.one_of(
            st.builds(Launch, st.integers(0, 2**40), st.integers(0, 20), st.binary(max_size=300)),
            st.builds(Prepare, st.integers(0, 500), st.binary(max_size=50), st.binary(max_size=50)),
            st.builds(Digest, st.integers(0, 2**40), st.binary(max_size=8)),
            st.just(Goodbye()),
        )
    )
)
def test_frames_arrive_as_they_were_sent(frames: list[Frame]) -> None:
    """All frames in order, without heartbeats."""
    ours, theirs = socket.socketpair()
    one, other = End(ours), End(theirs)
    one.peer.send(Beat())
    for frame in frames:
        one.peer.send(frame)
    assert [other.frames.get(timeout=5) for _ in frames] == frames
    assert other.frames.empty()
    for end in (one, other):
        end.peer.close()
    for connection in (ours, theirs):
        connection.close()


def test_a_buffer_arrives_unchanged(pair: tuple[End, End]) -> None:
    """A step's packed inputs are the same words on the other side."""
    buffer = np.random.default_rng(0).integers(-(2**31), 2**31, 5000, np.int64).astype(np.int32)
    pair[0].peer.send(Launch(3, 1, buffer.tobytes()))
    frame = pair[1].frames.get(timeout=5)
    assert isinstance(frame, Launch)
    np.testing.assert_array_equal(np.frombuffer(frame.buffer, np.int32), buffer)


def test_a_closed_connection_is_a_loss(pair: tuple[End, End]) -> None:
    pair[1].connection.shutdown(socket.SHUT_RDWR)
    assert "the other is lost" in pair[0].losses.get(timeout=2)
    assert pair[0].codes == [None]


def test_a_frame_that_cannot_be_handled_is_a_loss(
    pair: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process must not send heartbeats if it no longer handles frames."""
    monkeypatch.setattr(pair[0].peer, "_receive", {}.__getitem__)
    pair[1].peer.send(Digest(1, b""))
    assert "unexpected KeyError on our side" in pair[0].losses.get(timeout=2)


def test_a_failure_is_sent_with_its_code(pair: tuple[End, End]) -> None:
    """Both ends have the same reason; the end of the connection is not a second loss."""
    pair[1].peer.send(Failed("model.safetensors: damaged", 65))
    pair[1].peer.close()
    assert pair[0].losses.get(timeout=2) == "the other failed: model.safetensors: damaged"
    time.sleep(0.05)  # for a second loss to come, if there is one
    assert pair[0].codes == [65] and pair[0].losses.empty()


def test_an_end_after_a_goodbye_is_no_loss(pair: tuple[End, End]) -> None:
    """For either side."""
    pair[0].peer.send(Goodbye())
    pair[0].peer.close()
    assert pair[1].frames.get(timeout=2) == Goodbye()
    pair[1].peer.close()
    time.sleep(0.2)
    assert pair[0].losses.empty() and pair[1].losses.empty()


def test_an_end_without_a_goodbye_is_a_loss(pair: tuple[End, End]) -> None:
    pair[0].peer.close()
    assert "closed the connection" in pair[1].losses.get(timeout=2)
    time.sleep(0.1)
    assert pair[0].losses.empty() and pair[1].losses.empty()


def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """If its process hangs, a peer keeps the connection open and sends nothing."""
    monkeypatch.setattr(control, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(control, "SILENCE_SECONDS", 0.3)
    ours, theirs = socket.socketpair()
    end = End(ours)
    assert "silent for" in end.losses.get(timeout=5)
    theirs.close()
    ours.close()


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc"], ids=["endless", "garbage"])
def test_an_invalid_frame_is_a_loss(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    theirs.sendall(data)
    assert "the other is lost" in end.losses.get(timeout=5)
    theirs.close()
    ours.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": "host"}, "coordinator is 'host'; expected HOST:PORT"),
        ({"coordinator": ":80"}, "expected HOST:PORT"),
        ({"coordinator": "h:0"}, "expected HOST:PORT"),
        ({"coordinator": "h:99999"}, "expected HOST:PORT"),
        ({"processes": 1}, "num_processes is 1; expected at least 2"),
        ({"process": 2}, "process_id is 2; expected 0 to 1"),
    ],
    ids=str,
)
def test_an_invalid_membership_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Membership(**{"coordinator": "10.0.0.1:1234", "process": 0, "processes": 2, **changes})
    assert message in str(refusal.value)
