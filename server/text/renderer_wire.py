"""Typed frames between the web process and a renderer process, over a Unix socketpair, with blocking sockets.

A frame is a 4-byte big-endian length and that many bytes of JSON: a tool's schema may hold integers beyond 64
bits, which msgpack cannot carry. One question is under way at a time; nothing is ever unpickled.

    web -> renderer   Load, then any number of Render
    renderer -> web   Loaded, then for each Render a Rendered, Refused or Exhausted
"""

import socket
from typing import Any, TypeVar

import msgspec

MAX_FRAME = 32 << 20
"""The longest frame, in bytes: four times the largest body of a request."""

_LENGTH_BYTES = 4
_RECEIVE_BYTES = 1 << 18


class TooLong(Exception):
    """A frame that would be longer than MAX_FRAME; the message contains its length."""


class _Frame(msgspec.Struct, frozen=True, tag=True):
    """Base of all frames: immutable, tagged with the class's name."""


class Load(_Frame, frozen=True):
    """Compile this template, and determine its options and features by trial renderings.

    Attributes:
      special: texts of the special tokens by name. seconds: the time limit for this and for each rendering.
    """

    source: str
    special: dict[str, str]
    seconds: float


class Loaded(_Frame, frozen=True):
    """The answer to Load: the properties of the `ChatTemplate`."""

    options: list[str]
    knows_tools: bool


class Render(_Frame, frozen=True):
    """A conversation to render; `keywords` are those of `ChatTemplate.render`."""

    messages: list[Any]
    keywords: dict[str, Any]


class Rendered(_Frame, frozen=True):
    """The text of a conversation."""

    text: str


class Refused(_Frame, frozen=True):
    """The template refuses the conversation, with its own message."""

    message: str


class Exhausted(_Frame, frozen=True):
    """Rendering ran out of memory, or made too long a text; the process that sends this ends."""

    message: str


ToRenderer = Load | Render
ToWeb = Loaded | Rendered | Refused | Exhausted

FrameT = TypeVar("FrameT")

_encoder = msgspec.json.Encoder()
renderer_decoder = msgspec.json.Decoder(ToRenderer)
web_decoder = msgspec.json.Decoder(ToWeb)


def encode(frame: ToRenderer | ToWeb) -> bytes:
    """The frame as bytes, its length in front.

    Raises:
      TooLong: it is longer than MAX_FRAME.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise TooLong(f"{len(body)} bytes, more than the {MAX_FRAME} allowed")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def receive(connection: socket.socket, decoder: msgspec.json.Decoder[FrameT]) -> FrameT:
    """Waits for the next frame.

    Raises:
      EOFError: the other side is gone. TimeoutError: the socket's timeout has passed without a byte.
      OSError: the connection is broken. msgspec.DecodeError: what came is no frame.
    """
    size = int.from_bytes(_receive_exactly(connection, _LENGTH_BYTES), "big")
    if size > MAX_FRAME:
        raise msgspec.DecodeError(f"a frame of {size} bytes was announced; the most is {MAX_FRAME}")
    return decoder.decode(_receive_exactly(connection, size))


def _receive_exactly(connection: socket.socket, size: int) -> bytearray:
    received = bytearray()
    while len(received) < size:
        data = connection.recv(min(_RECEIVE_BYTES, size - len(received)))
        if not data:
            raise EOFError
        received += data
    return received
