"""Marks: what a proxy keeps of a resumable stream, so that another server can continue it.

A mark has the token events that a group of the stream's bytes was made from; the first one also has what was
drawn for the answer. The format is for servers of one version only: proxies do not read it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from ...runtime.request import TokenEvent
from ..errors import BadRequest
from .heading import Identity

Received = tuple[int, TokenEvent]
"""The number of a choice, and an event of it."""
Brief = tuple[int, float, float]


class Mark(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a proxy keeps.

    Attributes:
      events: numbers of choices with an event, or with its token, device-seconds and page-seconds if it says
        nothing else.
      identity, fingerprint: in the first mark only.
    """

    events: list[tuple[int, Brief | TokenEvent]] = []
    identity: Identity | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """A stream that began elsewhere.

    Attributes:
      received: what its choices had received, in order.
    """

    identity: Identity
    fingerprint: str
    received: Sequence[Received]

    def generated(self, choice: int) -> tuple[int, ...]:
        """The tokens that a choice has received."""
        events = (event for number, event in self.received if number == choice)
        return tuple(event.token for event in events if event.token is not None)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Mark)


def mark_of(mark: Mark) -> bytes:
    """A mark as a comment in a stream."""
    return b": resume " + base64.b64encode(_encoder.encode(mark)) + b"\n\n"


def briefly(received: Sequence[Received]) -> list[tuple[int, Brief | TokenEvent]]:
    """Events as in a mark."""
    return [(choice, _brief(event)) for choice, event in received]


def read_marks(marks: bytes) -> Resumption:
    """The stream whose marks a proxy has kept, joined by line feeds.

    Raises:
      BadRequest: they cannot be read.
    """
    try:
        first, *rest = (_decoder.decode(base64.b64decode(line, validate=True)) for line in marks.split(b"\n"))
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest("The marks in front of the body cannot be read.") from None
    if first.identity is None or first.fingerprint is None:
        raise BadRequest("The first mark does not say how the stream began.")
    received = [(choice, _whole(event)) for mark in (first, *rest) for choice, event in mark.events]
    return Resumption(first.identity, first.fingerprint, received)


def _brief(event: TokenEvent) -> Brief | TokenEvent:
    if event.token is None:
        return event
    brief = event.token, event.device_seconds, event.page_seconds
    return brief if event == replace(_whole(brief), request_id=event.request_id) else event


def _whole(event: Brief | TokenEvent) -> TokenEvent:
    if isinstance(event, TokenEvent):
        return event
    token, device, pages = event
    return TokenEvent(request_id="", token=token, device_seconds=device, page_seconds=pages)
