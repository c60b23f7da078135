"""Typed frames between the web process and a renderer process, over a Unix socketpair, with blocking sockets.

The frames are JSON (`runtime/framing.py`): a tool's schema may hold integers beyond 64 bits, which msgpack
cannot carry. Only one request is in progress at a time.

    web -> renderer   Load, then any number of Render
    renderer -> web   Loaded, then for each Render a Rendered, Refused or Exhausted
"""

from functools import partial
from typing import Any

import msgspec

from ...runtime.framing import Frame, FrameReader, with_length

MAX_FRAME = 32 << 20
"""The longest frame, in bytes: four times the largest body of a request."""


class Load(Frame, frozen=True):
    """Compile this template, and determine its options and features by trial renderings.

    Attributes:
      special: texts of the special tokens by name. seconds: the time limit for this and for each rendering.
    """

    source: str
    special: dict[str, str]
    seconds: float


class Loaded(Frame, frozen=True):
    """The answer to Load: the properties of the `ChatTemplate`."""

    options: list[str]
    knows_tools: bool


class Render(Frame, frozen=True):
    """A conversation to render; `keywords` are those of `ChatTemplate.render`."""

    messages: list[Any]
    keywords: dict[str, Any]


class Rendered(Frame, frozen=True):
    """The text of a conversation."""

    text: str


class Refused(Frame, frozen=True):
    """The template refuses the conversation, with its own message."""

    message: str


class Exhausted(Frame, frozen=True):
    """Rendering ran out of memory, or made too long a text; the process that sends this ends."""

    message: str


ToRenderer = Load | Render
ToWeb = Loaded | Rendered | Refused | Exhausted

_encoder = msgspec.json.Encoder()
renderer_reader = partial(FrameReader[ToRenderer], msgspec.json.Decoder(ToRenderer).decode, MAX_FRAME)
web_reader = partial(FrameReader[ToWeb], msgspec.json.Decoder(ToWeb).decode, MAX_FRAME)
"""Each makes a reader of the frames that the side of this name receives."""


def encode(frame: ToRenderer | ToWeb) -> bytes:
    """The frame as bytes, its length in front. Raises TooLong: it is longer than MAX_FRAME."""
    return with_length(_encoder.encode(frame), MAX_FRAME)
