"""Parsers of replies: their common base, and one for calls between marks anywhere in the text.

Parsers hold back only text that may become a call, read each character a bounded number of times, and return
as text whatever is not a call. They drop only white space around calls, and calls after the first one if
parallel calls are off. `leading` parses calls that need no mark.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from .envelope import Envelope, State
from .parts import CallStart, Part, Text, joined

Open = Callable[[], Envelope]
"""Creates the parser of one call."""

MOST_SPACE = 64
"""The most characters of white space that are held back; more of it is text."""


class _Parser(ABC):
    """The common base: a buffer of undecided text, and the call that is being parsed.

    A mode is a method that consumes part of the buffer; it changes nothing if it needs more text.
    """

    def __init__(self, open_envelope: Open, mode: Callable[[], Iterator[Part]], parallel: bool) -> None:
        self._open = open_envelope
        self._mode = mode
        self._parallel = parallel
        self._calls = 0
        self._buffer = ""
        self._lead = ""
        self._envelope = open_envelope()

    def push(self, text: str) -> list[Part]:
        """The parts that are certain after this text."""
        self._buffer += text
        return joined(part for part in self._advance() if self._wanted(part))

    def flush(self) -> list[Part]:
        """The remaining parts at the end of the reply; an incomplete call that has started remains a call."""
        rest = "" if self._envelope.started else self._lead + self._envelope.raw
        rest += "" if self._behind_call else self._buffer
        return [Text(rest)] if rest else []

    @property
    @abstractmethod
    def _behind_call(self) -> bool:
        """Whether the buffer can only contain text between calls."""

    def _wanted(self, part: Part) -> bool:
        self._calls += isinstance(part, CallStart)
        return self._parallel or isinstance(part, Text) or self._calls < 2

    def _advance(self) -> Iterator[Part]:
        while True:
            mode, before = self._mode, len(self._buffer)
            yield from self._mode()
            if self._mode == mode and len(self._buffer) == before:
                return

    def _read_call(self, found: Callable[[], Iterator[Part]]) -> Iterator[Part]:
        """Feeds the envelope; when it is complete, the next mode is `found`."""
        for place, character in enumerate(self._buffer, 1):
            yield from self._envelope.push(character)
            if self._envelope.state is not State.OPEN:
                self._buffer = self._buffer[place:]
                self._mode = found
                return
        self._buffer = ""

    def _given_up(self) -> str:
        """The text of an incomplete or invalid call."""
        text, self._lead = self._lead + self._envelope.raw, ""
        self._envelope = self._open()
        return text


class MarkedParser(_Parser):
    """Calls between a mark and its end, anywhere in the text."""

    def __init__(self, begin: str, end: str, open_envelope: Open, *, parallel: bool) -> None:
        super().__init__(open_envelope, self._in_text, parallel)
        self._begin, self._end = begin, end

    @property
    def _behind_call(self) -> bool:
        return self._mode == self._behind

    @property
    def _room(self) -> int:
        """How many more characters may precede a call."""
        return 2 * MOST_SPACE + len(self._begin) - len(self._lead)

    def _in_text(self) -> Iterator[Part]:
        place = self._buffer.find(self._begin)
        if place < 0:
            text, self._buffer = _split(self._buffer, self._begin)
        else:
            start, end = space_before(self._buffer, place), place + len(self._begin)
            text, self._lead, self._buffer = self._buffer[:start], self._buffer[start:end], self._buffer[end:]
            self._mode = self._at_call
        if text:
            yield Text(text)

    def _at_call(self) -> Iterator[Part]:
        space = len(self._buffer) - len(self._buffer.lstrip())
        space = min(space, self._room + 1)
        self._lead, self._buffer = self._lead + self._buffer[:space], self._buffer[space:]
        if self._room >= 0 and self._buffer and self._envelope.may_begin(self._buffer):
            self._mode = self._in_call
        elif self._buffer or self._room < 0:
            self._mode = self._in_text
            yield Text(self._given_up())

    def _in_call(self) -> Iterator[Part]:
        yield from self._read_call(self._behind)
        if self._envelope.state is State.BAD:
            self._mode = self._in_text
            yield Text(self._given_up())

    def _behind(self) -> Iterator[Part]:
        """Parses the end mark and white space; without the mark the text continues."""
        self._buffer = rest = self._buffer.lstrip()
        if rest.startswith(self._end):
            self._buffer = rest[len(self._end) :].lstrip()
        elif self._end and self._end.startswith(rest):
            return
        self._given_up()
        self._mode = self._between
        yield from ()

    def _between(self) -> Iterator[Part]:
        """Drops white space after a call."""
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._mode = self._in_text
        yield from ()


def _split(text: str, mark: str) -> tuple[str, str]:
    """The text that certainly precedes the mark, and the rest, with the space before it."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    held = next((size for size in sizes if mark.startswith(text[-size:])), 0)
    place = space_before(text, len(text) - held)
    return text[:place], text[place:]


def space_before(text: str, end: int) -> int:
    """The start of the white space that ends at `end`, at most as much as is held back."""
    start = end
    while start > max(0, end - MOST_SPACE) and text[start - 1].isspace():
        start -= 1
    return start
