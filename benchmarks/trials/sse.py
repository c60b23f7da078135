"""A cheap client: one request per connection, with the arrival time of each piece of the answer.

It shares its cores with the server that it measures, so it reads raw HTTP/1.1 and parses nothing while the
answer arrives. `replies.py` parses the pieces afterwards.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_LIMIT = 1 << 22
"""Maximum size of a chunk of an answer in bytes."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request; a GET if `body` is None."""

    path: str
    body: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Answer:
    """An answer; times are of `time.perf_counter()`.

    Attributes:
      asked: before the connection was opened. answered: when the head was complete.
      status: of the head; 0: none arrived. headers: by lower-case name.
      pieces: the chunks of the body with their times. whole: the body is complete.
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
    parts = urlsplit(url)
    answer = Answer(asked=time.perf_counter())
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=_LIMIT)
    except OSError:
        return answer
    try:
        writer.write(_request(call, parts.netloc, key))
        await _read(reader, answer)
        answer.whole = True
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
    return answer


def _request(call: Call, host: str, key: str | None) -> bytes:
    body = b"" if call.body is None else json.dumps(call.body).encode()
    lines = [
        f"{'GET' if call.body is None else 'POST'} {call.path} HTTP/1.1",
        f"Host: {host}",
        "Connection: close",
        *([f"Authorization: Bearer {key}"] if key else []),
        *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _read(reader: asyncio.StreamReader, answer: Answer) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.answered = time.perf_counter()
    pairs = (line.partition(":") for line in head[1:] if line)
    answer.headers = {name.lower(): value.strip() for name, _, value in pairs}
    answer.status = int(head[0].split()[1])
    if answer.headers.get("transfer-encoding") == "chunked":
        async for chunk in _chunks(reader):
            answer.pieces.append((time.perf_counter(), chunk))
    else:
        content = await reader.readexactly(int(answer.headers.get("content-length", 0)))
        answer.pieces.append((time.perf_counter(), content))


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of a body up to the final empty one."""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        chunk = await reader.readexactly(size + 2)
        if not size:
            return
        yield chunk[:-2]
