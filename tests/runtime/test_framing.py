"""The laws of framing: any cut of the stream gives the same frames, and nothing else is accepted as one."""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.framing import (
    Frame,
    FramedPeer,
    FrameReader,
    TooLong,
    WireError,
    received,
    with_length,
)

LONGEST = 300


class Word(Frame, frozen=True):
    """A frame with text."""

    text: str


class Number(Frame, frozen=True):
    """A frame with a number."""

    number: int


KINDS = {
    "msgpack": (msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Word | Number).decode),
    "json": (msgspec.json.Encoder().encode, msgspec.json.Decoder(Word | Number).decode),
}
FRAMES = st.lists(st.builds(Word, st.text(max_size=20)) | st.builds(Number, st.integers(-9, 2**62)))
FRAMES_AND_KIND = st.tuples(FRAMES, st.sampled_from(sorted(KINDS)))


def stream_of(frames: list[Frame], kind: str) -> bytes:
    return b"".join(with_length(KINDS[kind][0](frame), LONGEST) for frame in frames)


def reader_of(kind: str = "msgpack") -> FrameReader[Word | Number]:
    return FrameReader(KINDS[kind][1], LONGEST)


class Peer(FramedPeer[Word | Number]):
    """A peer that records its end."""

    def __init__(
        self, connection: socket.socket, receive: Callable[[Word | Number], None], behind: int = 0
    ) -> None:
        self.ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        super().__init__(connection, reader_of(), receive, behind)

    def send(self, frame: Frame) -> None:
        self._send(stream_of([frame], "msgpack"))

    def _start(self, name: str, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=name, daemon=True).start()

    def _ended(self, error: Exception | None) -> None:
        self.ends.put(error)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@given(FRAMES_AND_KIND, st.lists(st.integers(1, 40), min_size=1))
def test_any_cut_gives_the_same_frames(sent: tuple[list[Frame], str], cuts: list[int]) -> None:
    frames, kind = sent
    reader, stream, seen, turn = reader_of(kind), stream_of(frames, kind), [], 0
    while stream:
        size = cuts[turn % len(cuts)]
        seen += reader.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert seen == frames


@given(FRAMES_AND_KIND, st.data())
def test_a_damaged_stream_is_an_error_or_other_frames_never_a_crash(
    sent: tuple[list[Frame], str], data: st.DataObject
) -> None:
    frames, kind = sent
    damaged = bytearray(stream_of([*frames, Word("é")], kind))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        for read in reader_of(kind).feed(bytes(damaged)):
            assert isinstance(read, Word | Number)


@given(st.binary(min_size=4, max_size=400), st.sampled_from(sorted(KINDS)))
def test_noise_raises_nothing_but_wire_errors(noise: bytes, kind: str) -> None:
    with contextlib.suppress(WireError):
        list(reader_of(kind).feed(noise))


def test_an_announced_length_beyond_the_limit_is_refused_before_it_is_awaited() -> None:
    with pytest.raises(WireError, match="a frame of 301 bytes was announced; the most is 300"):
        list(reader_of().feed((LONGEST + 1).to_bytes(4, "big")))


def test_the_longest_frame_passes_and_a_longer_one_is_refused_by_the_sender() -> None:
    assert with_length(b"x" * LONGEST, LONGEST) == b"\0\0\x01\x2c" + b"x" * LONGEST
    with pytest.raises(TooLong, match="301 bytes; the most is 300"):
        with_length(b"x" * (LONGEST + 1), LONGEST)


@given(FRAMES, st.integers(1, 8))
def test_a_stream_closed_in_the_middle_gives_the_frames_before(frames: list[Frame], missing: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(stream_of([*frames, Word("cut off")], "msgpack")[:-missing])
        theirs.close()
        assert list(received(ours, reader_of())) == frames


def test_a_peer_sends_in_order_and_reports_the_end(sockets: tuple[socket.socket, socket.socket]) -> None:
    seen: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    one, other = (Peer(each, seen.put) for each in sockets)
    frames = [Number(number) for number in range(100)]
    for frame in frames:
        one.send(frame)
    one.flush()
    one.close()
    assert [seen.get(timeout=5) for _ in frames] == frames
    assert one.written.wait(5) and other.ends.get(timeout=5) is None
    other.close()
    assert one.ends.get(timeout=5) is None


def test_a_peer_reports_bytes_that_are_no_frame(sockets: tuple[socket.socket, socket.socket]) -> None:
    peer = Peer(sockets[0], print)
    sockets[1].sendall(b"\0\0\0\x03abc")
    assert "a frame of 3 bytes cannot be read" in str(peer.ends.get(timeout=5))


def test_a_bounded_peer_refuses_more_than_may_wait(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Nobody reads on the other side; the sender is never blocked."""
    peer = Peer(sockets[0], print, behind=10)
    with pytest.raises(queue.Full):
        for _ in range(100_000):
            peer.send(Word("x" * 200))
