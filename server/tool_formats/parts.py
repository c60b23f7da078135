"""The few words that all formats share: a tool, and what a reply with calls is made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called.

    Attributes:
      parameters: JSON schema of its arguments; None where it takes none. strict: they must be valid.
      param: where the request has them.
    """

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool = False
    param: str = "tools"

    def to_dict(self) -> dict[str, Any]:
        """As templates want it."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary content, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; calls are numbered by their order, and end where the next begins."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of the call's arguments; joined, the fragments are one JSON object."""

    text: str


Part = Text | CallStart | CallArguments


class ToolCallParser(Protocol):
    """Takes a reply apart as it comes."""

    def push(self, text: str) -> list[Part]:
        """What is certain after this text."""
        ...

    def flush(self) -> list[Part]:
        """What is left when the reply is complete."""
        ...


class CallsOnly:
    """Of a reply that a grammar holds to calls: text in it is the beginning of a call that was cut short."""

    def __init__(self, parser: ToolCallParser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Part]:
        """What is certain after this text."""
        return [part for part in self._parser.push(text) if not isinstance(part, Text)]

    def flush(self) -> list[Part]:
        """What is left when the reply is complete."""
        return [part for part in self._parser.flush() if not isinstance(part, Text)]


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same with neighbouring texts, and neighbouring fragments, made one."""
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
