"""Server-sent events in pieces of any size (WHATWG HTML, 9.2), and what is measured of OpenAI's chunks.

Of an event only its data matters here: names, ids and comments are skipped.
"""

from typing import Any

import msgspec

DONE = b"[DONE]"
"""The data of the last event of a stream."""


class EventReader:
    """Splits a stream into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes."""
        *lines, self._rest = _lines(self._rest + piece)
        found = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                found.append(b"\n".join(self._data))
                self._data.clear()
        return found


def _lines(data: bytes) -> list[bytes]:
    """Complete lines without their ends, and what follows: a CR at the end may be half of a line end."""
    lines = data.splitlines(keepends=True)
    rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
    return [*(line.rstrip(b"\r\n") for line in lines), rest]


class Delta(msgspec.Struct):
    """What a chunk adds to a chat's message; both names of the reasoning are in use."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    """A choice of a chunk: `text` in completions, `delta` in chats."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether the model has generated any of it; the first chunk of a chat has the role alone."""
        delta = self.delta
        return bool(
            self.written or (delta and (delta.reasoning_content or delta.reasoning or delta.tool_calls))
        )

    @property
    def written(self) -> str:
        """The text of the answer itself, without reasoning and calls."""
        return self.text or (self.delta.content if self.delta else "") or ""


class Cached(msgspec.Struct):
    """The details of a prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The token counts of a request."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Cached | None = None


class Chunk(msgspec.Struct):
    """One event of a streamed completion."""

    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    error: Any = None


read_chunk = msgspec.json.Decoder(Chunk).decode
"""Reads an event's data; raises `msgspec.MsgspecError` if it is no chunk."""
