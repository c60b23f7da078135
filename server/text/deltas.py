"""What a choice of an answer consists of: a start, reasoning, pieces of text, tool calls, an end.

Records that hold ids, text and log-probabilities; neither JSON nor HTTP. `choice` makes them from tokens, and
each protocol writes them in its own shapes.
"""

from dataclasses import dataclass
from typing import Literal

from .logprobs import Entry

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Start:
    """The first delta of a choice; `calls`: it begins with a tool call, not with text or reasoning."""

    choice: int
    calls: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the reasoning before a choice's answer, never empty."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a choice's text, never empty, and the log-probability entries of the tokens in it."""

    choice: int
    text: str
    logprobs: list[Entry] | None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The start of a choice's tool call number `call`."""

    choice: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON arguments of a tool call."""

    choice: int
    call: int
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of a choice, with the entries of tokens that belong to no piece of text."""

    choice: int
    reason: Finish
    logprobs: list[Entry] | None = None


Delta = Start | Reasoning | Piece | ToolCall | Arguments | End
