"""A cheap client: one request per connection, with the arrival time of each piece of the answer.

It shares its cores with the server that it measures, so it parses nothing while the answer arrives.
`replies.py` parses the pieces afterwards.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from distaff.server.bench.http_client import AnswerBroken, ConnectionFailed, HttpClient


@dataclass(frozen=True, slots=True)
class Call:
    """A request; a GET if `body` is None, and bytes that are sent as they are."""

    path: str
    body: Mapping[str, Any] | bytes | None = None


@dataclass(slots=True)
class Answer:
    """An answer; times are of `time.perf_counter()`.

    Attributes:
      asked: before the connection was opened. answered: when the head was complete.
      status: of the head; 0: none arrived. headers: by lower-case name.
      pieces: parts of the body with their times. whole: the body is complete.
    """

    asked: float
    answered: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    whole: bool = False

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def retry_after(self) -> float | None:
        """The header's seconds, if there is one."""
        value = self.headers.get("retry-after")
        return None if value is None else float(value)

    def events(self) -> Iterator[tuple[float, Any]]:
        """The server-sent events that hold JSON, each with the arrival time of its last byte."""
        rest = b""
        for moment, piece in self.pieces:
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                start = event.find(b"data: {")
                if start >= 0:
                    yield moment, json.loads(event[start + 6 :])


async def ask(url: str, call: Call, key: str | None = None) -> Answer:
    """Sends a request and reads its answer to the end; if the connection breaks, the answer is not whole."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = call.body if isinstance(call.body, bytes | None) else json.dumps(call.body).encode()
    answer = Answer(asked=time.perf_counter())
    with contextlib.suppress(ConnectionFailed, AnswerBroken), closing(HttpClient(url, headers)) as client:
        async with client.ask(call.path, body) as found:
            answer.answered = time.perf_counter()
            answer.status, answer.headers = found.status, dict(found.headers)
            async for piece in found.pieces():
                answer.pieces.append((time.perf_counter(), piece))
        answer.whole = True
    return answer
