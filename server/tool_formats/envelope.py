"""One call as JSON, `{"name": …, "arguments": {…}}`, parsed character by character in linear time.

A call is accepted when it is complete, names one of the tools and has an object for arguments. If a grammar
constrains the reply, a call is certain from its beginning on, and arguments are emitted as they arrive.
"""

from collections.abc import Collection, Iterator, Sequence
from enum import Enum, auto
from typing import Any

import jiter
import msgspec

from .parts import CallArguments, CallStart, Part

LONGEST = 1 << 20
"""The most characters of one call; longer text is not a call."""

_ARGUMENTS = ("arguments", "parameters")


class State(Enum):
    """The state of an envelope."""

    OPEN = auto()
    DONE = auto()
    BAD = auto()


class Envelope:
    """A call that is being parsed; it begins with `{`.

    Attributes:
      raw: its text so far. started: its start has been emitted. state: the state of the parser.
    """

    def __init__(self, names: Collection[str], heads: Sequence[tuple[str, str]]) -> None:
        """An empty call.

        Args:
          names: of the tools. heads: `(text, name)`, the exact beginnings of calls, up to the arguments, if a
            grammar constrains the reply; otherwise empty.
        """
        self.started = False
        self.state = State.OPEN
        self._names = names
        self._heads = heads
        self._raw: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = False

    @staticmethod
    def may_begin(text: str) -> bool:
        """Whether a call may begin with this text."""
        return text[0] == "{"

    @property
    def raw(self) -> str:
        """The text of the call so far."""
        return "".join(self._raw)

    def push(self, character: str) -> Iterator[Part]:
        """Adds a character; yields the parts that are certain after it."""
        self._raw.append(character)
        self._scan(character)
        if self.started:
            if self._depth:
                yield CallArguments(character)
        elif self._heads and character == " ":
            yield from self._begin()
        if not self._depth:
            yield from self._finish()
        elif len(self._raw) > LONGEST and not self.started:
            self.state = State.BAD

    def _scan(self, character: str) -> None:
        if self._in_string:
            closes = character == '"' and not self._escaped
            self._escaped = character == "\\" and not self._escaped
            self._in_string = not closes
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1

    def _begin(self) -> Iterator[Part]:
        """Starts the call at the space that ends a head."""
        longest = max(len(head) for head, _ in self._heads)
        raw = self.raw if len(self._raw) <= longest else ""
        name = next((name for head, name in self._heads if head == raw), None)
        if name is not None:
            self.started = True
            yield CallStart(name)

    def _finish(self) -> Iterator[Part]:
        self.state = State.DONE
        if self.started:
            return
        call = _read(self.raw, self._names)
        if call is None:
            self.state = State.BAD
            return
        self.started = True
        yield from call


def _read(raw: str, names: Collection[str]) -> list[Part] | None:
    """The parts of the call in a JSON text; None if it is not a call."""
    value = parsed(raw)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or name not in names:
        return None
    arguments = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = parsed(arguments)
    if not isinstance(arguments, dict):
        return None
    return [CallStart(name), CallArguments(msgspec.json.encode(arguments).decode())]


def parsed(raw: str) -> Any:
    """The value of a JSON text; None if it is invalid."""
    try:
        return jiter.from_json(raw.encode("utf-8", "surrogatepass"), allow_inf_nan=False)
    except ValueError:
        return None
