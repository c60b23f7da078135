"""One call as JSON, `{"name": …, "arguments": {…}}`, read character by character in linear time.

A call is believed when it is complete, names one of the tools and has an object for arguments. Where a
grammar vouches for the reply that is known from the first words on, and arguments are passed on as they come.
"""

from collections.abc import Collection, Iterator, Sequence
from enum import Enum, auto
from typing import Any

import jiter
import msgspec

from .parts import CallArguments, CallStart, Part

LONGEST = 1 << 20
"""Characters of one call; what is longer is text."""

_ARGUMENTS = ("arguments", "parameters")


class State(Enum):
    """How far an envelope has come."""

    OPEN = auto()
    DONE = auto()
    BAD = auto()


class Envelope:
    """A call that is being read; it begins with `{`.

    Attributes:
      raw: all that was read of it. started: its call has been reported. state: how far it has come.
    """

    def __init__(self, names: Collection[str], heads: Sequence[tuple[str, str]]) -> None:
        """Nothing was read.

        Args:
          names: of the tools. heads: `(text, name)`, the exact beginnings of calls where a grammar vouches
            for the reply, up to the arguments; empty where none does.
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
        """Whether a call may begin like this."""
        return text[0] == "{"

    @property
    def raw(self) -> str:
        """All that was read of it."""
        return "".join(self._raw)

    def push(self, character: str) -> Iterator[Part]:
        """Takes a character; yields what is certain after it."""
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
        """A head ends in a space: with it the call is known."""
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
    """The call that a JSON text is; None if it is none."""
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
    """The value of a JSON text; None where it is none."""
    try:
        return jiter.from_json(raw.encode("utf-8", "surrogatepass"), allow_inf_nan=False)
    except ValueError:
        return None
