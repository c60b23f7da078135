"""Resumable streams: what lets a proxy continue a stream on another server when this one is lost.

For a request with the operator's key, each group of a stream's bytes is followed by a comment, a *mark*, with
the token events that the bytes were made from. The proxy keeps the marks and removes them from the stream.
Another server that serves the same weights reads them in front of the same body, makes the same bytes again
without sending them, and goes on from there. `docs/resuming.md` has the protocol.
"""

import hmac
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ...runtime.request import Request, TokenEvent
from ..errors import ApiError, BadRequest
from ..protocol.marks import Mark, Resumption, briefly, mark_of, read_marks
from ..quotas.keys_file import digest_of
from ..text.generation import Generation
from .context import ApiRequest

VARIABLE = "DISTAFF_RESUME_KEY"
"""The environment variable with the key of the proxies that may ask for marks and resume streams."""
KEY_HEADER = "x-distaff-resume-key"
LENGTH_HEADER = "x-distaff-resume"
"""The number of bytes of marks in front of the body."""

_LENGTH_DIGITS = 10


class StreamGroups:
    """The bytes of a stream in groups, each with its mark if the request asked for marks.

    What the client has already had from another server is left out.
    """

    def __init__(self, request: ApiRequest, generation: Generation) -> None:
        self._request, self._generation = request, generation
        if request.marked:
            generation.taken()  # from now on they are kept

    def opening(self, events: Iterable[bytes]) -> Iterator[bytes]:
        """The events before the first delta."""
        context, identity = self._request.app.ctx, self._request.identity
        if self._request.resumption is not None:
            deque(events, 0)
        elif self._request.marked:
            first = Mark(identity=identity, fingerprint=context.engine_info().fingerprint)
            yield b"".join(events) + mark_of(first)
        else:
            yield from events

    def of(self, events: Iterable[bytes], ended: Iterable[int] = ()) -> Iterator[bytes]:
        """Further events, which follow from the token events that the generation has returned.

        Args:
          ended: the choices that end with them.
        """
        if self._generation.replaying:
            deque(events, 0)
        elif self._request.marked:
            yield b"".join(events) + mark_of(Mark(briefly(self._generation.taken()), list(ended)))
        else:
            yield from events


async def take_marks(request: ApiRequest) -> None:
    """Sets `marked` and `resumption` of a request of a proxy, and removes the marks from its body.

    Raises:
      ApiError: 403, the key is wrong. BadRequest: the marks cannot be read.
    """
    given = request.headers.getone(KEY_HEADER, None)
    if given is None:
        return
    expected = request.app.ctx.settings.resume_key
    if expected is None or not hmac.compare_digest(digest_of(given), digest_of(expected)):
        raise ApiError(403, f"The {KEY_HEADER} header does not hold the key in this server's {VARIABLE}.")
    request.marked = True
    length = request.headers.getone(LENGTH_HEADER, None)
    if length is None or request.resumption is not None:
        return
    if not (length.isdecimal() and len(length) <= _LENGTH_DIGITS and 0 < int(length) <= len(request.body)):
        raise BadRequest(f"{LENGTH_HEADER} is {length[:32]!r}; expected 1 to {len(request.body)}")
    marks, request.body = request.body[: int(length)], request.body[int(length) :]
    resumption = await request.off_loop.run(len(marks), read_marks, marks)
    request.resumption, request.identity = resumption, resumption.identity


def continued(
    resumption: Resumption | None, requests: Sequence[Request], fingerprint: str
) -> Sequence[Request]:
    """The sequences of a call; those of a stream that began elsewhere with what they have already.

    Raises:
      ApiError: 409, the stream began on an engine that may answer differently.
      BadRequest: the marks are not of this request.
    """
    if resumption is None:
        return requests
    if resumption.fingerprint != fingerprint:
        raise ApiError(
            409,
            f"The stream began on an engine with the fingerprint {resumption.fingerprint[:64]!r}; "
            f"this one has {fingerprint!r}.",
            code="fingerprint_mismatch",
        )
    if not all(_is_of(requests, choice, event) for choice, event in resumption.received):
        raise BadRequest("The marks in front of the body are not of this request.")
    generated = resumption.generated()
    return [
        replace(each, generated=tuple(generated.get(choice, ())), interrupted=True)
        for choice, each in enumerate(requests)
    ]


def _is_of(requests: Sequence[Request], choice: int, event: TokenEvent) -> bool:
    """Whether a choice can have received an event."""
    if not 0 <= choice < len(requests):
        return False
    scored = requests[choice].params.logprobs is not None
    return event.token is None or scored == (event.logprobs is not None)
