"""Typed frames between the web process and the engine process, over one Unix socketpair.

The frames are msgpack (`runtime/framing.py`). The socketpair has no name, no port and no permissions that
could be wrong. `supervisor.py` (web) and `engine_server.py` (engine) decide who sends which frame, and when.

The frozen dataclasses of `runtime/request.py` travel as they are. One `Step` carries the events of all
rows of a device step, so the traffic does not grow with the number of streams.

    web -> engine   Submit  Abort  Profile  Stop
    engine -> web   Progress  Located  Ready  Step  Heartbeat  Leaving  Fatal
"""

from functools import partial

import msgspec

from ...runtime.framing import Frame, FrameReader, TooLong, WireError, with_length
from ...runtime.request import EngineStats, Request, TokenEvent
from ..engine_client import EngineInfo

MAX_FRAME = 32 << 20
"""The longest frame, in bytes: a prompt of some six million token ids."""


class Submit(Frame, frozen=True):
    """Begin this request."""

    request: Request


class Abort(Frame, frozen=True):
    """Drop this request wherever it is; unknown ids are ignored."""

    request_id: str


class Profile(Frame, frozen=True):
    """Begin a profile, or end the one that was begun."""

    on: bool


class Stop(Frame, frozen=True):
    """Finish the present step, answer nothing more, and exit with code 0."""


class Progress(Frame, frozen=True):
    """A piece of a long task is done.

    Attributes:
      phase: `download`, `verify`, `load` or `compile`.
      done, total: of the same unit; a total of 0 is unknown.
    """

    phase: str
    done: int
    total: int


class Located(Frame, frozen=True):
    """Where the resolved checkpoint lies, for the tokenizer beside it."""

    path: str


class Ready(Frame, frozen=True):
    """The executables that are enough for any request are built; the rest follow in the background."""

    info: EngineInfo


class Step(Frame, frozen=True):
    """The events of one device step for all requests, and the load after it."""

    events: list[TokenEvent]
    stats: EngineStats


class Heartbeat(Frame, frozen=True):
    """The engine's loop makes progress, even without events to report."""

    stats: EngineStats


class Leaving(Frame, frozen=True):
    """The process received SIGTERM, and waits for a Stop, which comes when nothing needs it any more."""


class Fatal(Frame, frozen=True):
    """The engine cannot come up, or go on, and trying again would not help.

    Attributes:
      message: one line for the operator. exit_code: what the server should exit with.
    """

    message: str
    exit_code: int


ToEngine = Submit | Abort | Profile | Stop
ToWeb = Progress | Located | Ready | Step | Heartbeat | Leaving | Fatal

_encoder = msgspec.msgpack.Encoder()


def encode(frame: ToEngine | ToWeb) -> bytes:
    """The frame as bytes, its length in front. Raises WireError: it is longer than MAX_FRAME."""
    try:
        return with_length(_encoder.encode(frame), MAX_FRAME)
    except TooLong as error:
        raise WireError(f"a {type(frame).__name__} frame of {error}") from None


engine_reader = partial(FrameReader[ToEngine], msgspec.msgpack.Decoder(ToEngine).decode, MAX_FRAME)
"""Makes a reader, in the engine process, of the web process's frames."""
web_reader = partial(FrameReader[ToWeb], msgspec.msgpack.Decoder(ToWeb).decode, MAX_FRAME)
"""Makes a reader, in the web process, of the engine process's frames."""
