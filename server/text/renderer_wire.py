"""Typed frames between the web process, renderers and their parent, over Unix sockets that block.

The frames are JSON (`runtime/framing.py`): a tool's schema may hold integers beyond 64 bits, which msgpack
cannot carry. Only one request is in progress at a time. A renderer has a connection to the web process; its
parent has another socket, the status socket, for what concerns this renderer. The parent has received one end
of both on the control socket.

    web -> parent     on the control socket, for each new renderer: one byte with the two descriptors
    parent -> web     on the status socket: Forked or NotForked; after the web has closed its side: Ended
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


class Forked(Frame, frozen=True):
    """There is a new renderer, with this process id."""

    pid: int


class NotForked(Frame, frozen=True):
    """The system refused."""

    reason: str


class Ended(Frame, frozen=True):
    """The renderer has ended or was killed; the exit code is negative for a signal."""

    code: int


ToRenderer = Load | Render
ToWeb = Loaded | Rendered | Refused | Exhausted
FromParent = Forked | NotForked | Ended

_encoder = msgspec.json.Encoder()
renderer_reader = partial(FrameReader[ToRenderer], msgspec.json.Decoder(ToRenderer).decode, MAX_FRAME)
web_reader = partial(FrameReader[ToWeb], msgspec.json.Decoder(ToWeb).decode, MAX_FRAME)
status_reader = partial(FrameReader[FromParent], msgspec.json.Decoder(FromParent).decode, MAX_FRAME)
"""Each makes a reader of the frames that the side of this name receives, or that a status socket carries."""


def encode(frame: ToRenderer | ToWeb | FromParent) -> bytes:
    """The frame as bytes, its length in front. Raises TooLong: it is longer than MAX_FRAME."""
    return with_length(_encoder.encode(frame), MAX_FRAME)
