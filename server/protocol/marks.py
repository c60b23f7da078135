"""Marks: what a proxy keeps of a resumable stream, so that another server can continue it.

A mark has the token events that a group of the stream's bytes was made from; the first one also has what was
drawn for the answer. The format is for servers of one version only: proxies do not read it.
"""

import base64
from collections import defaultdict
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
      ended: choices that need no further event. identity, fingerprint: in the first mark only.
    """

    events: list[tuple[int, Brief | TokenEvent]] = []
    ended: list[int] = []
    identity: Identity | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """A stream that began elsewhere.

    Attributes:
      received: what its choices had received, in order. ended: the choices that had ended.
    """

    identity: Identity
    fingerprint: str
    received: Sequence[Received]
    ended: frozenset[int]

    def generated(self) -> dict[int, list[int]]:
        """The tokens that each choice has received; only those that have any."""
        found = defaultdict[int, list[int]](list)
        for choice, event in self.received:
            if event.token is not None:
                found[choice].append(event.token)
        return found


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Mark)


def mark_of(mark: Mark) -> bytes:
    """A mark as a comment in a stream."""
    return b": resume " + base64.b64encode(_encoder.encode(mark)) + b"\n\n"


def briefly(received: Sequence[Received]) -> list[tuple[int, Brief | TokenEvent]]:
    """Events as in a mark."""
    return [(choice, _brief(event)) for choice, event in received]


def read_marks(kept: bytes) -> Resumption:
    """The stream whose marks a proxy has kept, joined by line feeds.

    Raises:
      BadRequest: they cannot be read.
    """
    try:
        first, *rest = (_decoder.decode(base64.b64decode(line, validate=True)) for line in kept.split(b"\n"))
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest("The marks in front of the body cannot be read.") from None
    if first.identity is None or first.fingerprint is None:
        raise BadRequest("The first mark does not say how the stream began.")
    marks = (first, *rest)
    received = [(choice, _whole(event)) for mark in marks for choice, event in mark.events]
    ended = frozenset(choice for mark in marks for choice in mark.ended)
    return Resumption(first.identity, first.fingerprint, received, ended)


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
