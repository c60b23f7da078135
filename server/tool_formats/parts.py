"""The types that all formats share: a tool, and the parts of a reply with calls."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

FREE_TEXT = "input"
"""The one argument of a free-form tool."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called.

    Attributes:
      name: the one that the model uses.
      parameters: JSON schema of its arguments; None if it has none. strict: they must be valid.
      param: the path of the schema in the request.
      namespace, own_name: where the request lists it in a namespace, the two parts of its name.
      free_form: its one argument is a text. syntax: the Lark grammar of that text, if any.
    """

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool = False
    param: str = "tools"
    namespace: str | None = None
    own_name: str | None = None
    free_form: bool = False
    syntax: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The form that templates expect."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary content, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The start of a call; calls are numbered in order, and end where the next one starts."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of the call's arguments; the joined fragments are one JSON object."""

    text: str


Part = Text | CallStart | CallArguments


class ToolCallParser(Protocol):
    """Splits a reply into parts as it arrives."""

    def push(self, text: str) -> list[Part]:
        """The parts that are certain after this text."""
        ...

    def flush(self) -> list[Part]:
        """The remaining parts at the end of the reply."""
        ...


class CallsOnly:
    """For a reply that a grammar constrains to calls: drops text, which is the start of a truncated call."""

    def __init__(self, parser: ToolCallParser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Part]:
        """The parts that are certain after this text."""
        return [part for part in self._parser.push(text) if not isinstance(part, Text)]

    def flush(self) -> list[Part]:
        """The remaining parts at the end of the reply."""
        return [part for part in self._parser.flush() if not isinstance(part, Text)]


def joined(parts: Iterable[Part]) -> list[Part]:
    """The parts, with adjacent texts and adjacent fragments merged."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, Text) and isinstance(last, Text):
            result[-1] = Text(last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments):
            result[-1] = CallArguments(last.text + part.text)
        else:
            result.append(part)
    return result
