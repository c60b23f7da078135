"""Typed frames between the web process and the engine process, over one Unix socketpair.

A frame is a 4-byte big-endian length and that many bytes of msgpack. The socketpair has no name, no port
and no permissions to get wrong; nothing on it is ever unpickled. Who sends what, and when, is left to
`supervisor.py` (web) and `engine_server.py` (engine); this module only turns frames to bytes and back.

The frozen dataclasses of `runtime/request.py` travel as they are. One `Step` carries the events of all
rows of a device step, so the traffic does not grow with the number of streams.

    web -> engine   Submit  Abort  Profile  Stop
    engine -> web   Progress  Located  Ready  Step  Heartbeat  Leaving  Fatal
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from ...model.errors import DistaffError
from ...runtime.request import EngineStats, Request, TokenEvent
from ..engine_client import EngineInfo

MAX_FRAME = 32 << 20
"""The longest frame, in bytes: a prompt of some six million token ids."""

_LENGTH_BYTES = 4


class WireError(Exception):
    """Bytes that are not one of our frames: the peer is broken or of another version."""


class _Frame(msgspec.Struct, frozen=True, tag=True):
    """Base of all frames: immutable, told apart by the class's name."""


class Submit(_Frame, frozen=True):
    """Begin this request."""

    request: Request


class Abort(_Frame, frozen=True):
    """Drop this request wherever it is; unknown ids are ignored."""

    request_id: str


class Profile(_Frame, frozen=True):
    """Begin a profile, or end the one that was begun."""

    on: bool


class Stop(_Frame, frozen=True):
    """Finish the present step, answer nothing more, and exit with code 0."""


class Progress(_Frame, frozen=True):
    """A piece of a long task is done.

    Attributes:
      phase: `download`, `convert`, `load` or `compile`. done, total: of the same unit; total 0 is unknown.
    """

    phase: str
    done: int
    total: int


class Located(_Frame, frozen=True):
    """Where the resolved checkpoint lies, for the tokenizer beside it."""

    path: str


class Ready(_Frame, frozen=True):
    """Every executable is built; requests may come."""

    info: EngineInfo


class Step(_Frame, frozen=True):
    """What one device step said to all requests, and the load after it."""

    events: list[TokenEvent]
    stats: EngineStats


class Heartbeat(_Frame, frozen=True):
    """The engine's loop turns, though it may have nothing to say."""

    stats: EngineStats


class Leaving(_Frame, frozen=True):
    """The process was asked to end (SIGTERM), and waits to be told when nobody needs it any more."""


class Fatal(_Frame, frozen=True):
    """The engine cannot come up, or go on, and trying again would not help.

    Attributes:
      message: one line for the operator. exit_code: what the server should exit with.
    """

    message: str
    exit_code: int


ToEngine = Submit | Abort | Profile | Stop
ToWeb = Progress | Located | Ready | Step | Heartbeat | Leaving | Fatal

FrameT = TypeVar("FrameT")

_encoder = msgspec.msgpack.Encoder()


def encode(frame: ToEngine | ToWeb) -> bytes:
    """The frame as bytes, its length in front.

    Raises:
      WireError: the frame is longer than MAX_FRAME.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise WireError(f"a {type(frame).__name__} frame of {len(body)} bytes; the most is {MAX_FRAME}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader(Generic[FrameT]):
    """Cuts a stream of bytes, arriving in any pieces, into frames of one direction."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[FrameT]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[FrameT]:
        """Yields the frames that `data` completes.

        Raises:
          WireError: a length beyond MAX_FRAME, or a body that is no frame of this direction. What follows
            on the same connection cannot be trusted either.
        """
        self._buffer += data
        while (body := self._take_body()) is not None:
            yield self._decode(body)

    def _take_body(self) -> bytes | None:
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if length > MAX_FRAME:
            raise WireError(f"a frame of {length} bytes was announced; the most is {MAX_FRAME}")
        end = _LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        return body

    def _decode(self, body: bytes) -> FrameT:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, DistaffError, RecursionError, UnicodeDecodeError) as error:
            raise WireError(f"a frame of {len(body)} bytes cannot be read: {error}") from error


def engine_reader() -> FrameReader[ToEngine]:
    """A reader, in the engine process, of what the web process sends."""
    return FrameReader(msgspec.msgpack.Decoder(ToEngine))


def web_reader() -> FrameReader[ToWeb]:
    """A reader, in the web process, of what the engine process sends."""
    return FrameReader(msgspec.msgpack.Decoder(ToWeb))
