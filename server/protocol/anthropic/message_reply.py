"""What `/v1/messages` answers: named events, or the message that folds them.

A reply is a list of blocks: thinking, texts, and calls of tools whose arguments come as pieces of JSON. The
one idea: each block is opened, filled by deltas of its own type and closed, so that a further kind of block
is an entry in `_DELTAS` and a case in `_advance`. Input tokens are those that were neither found in
the cache nor written there: clients add the three counts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jiter
import msgspec

from ...encode import to_named_event
from ...errors import ApiError
from ...text.choice import ChoiceText
from ...text.deltas import Arguments, Delta, End, Piece, Reasoning, Start, ToolCall
from ..heading import Heading
from ..usage import Usage
from .message_errors import error_body

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields."""

PING = to_named_event("ping", {"type": "ping"})

_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""For each kind of block: the type of its deltas, and the key of their text."""

SIGNATURE = "unsigned"
"""Of a thinking block. Anthropic's proves that the text is its own, and clients send no block without one
back."""


class MessageReply:
    """One answer in the shapes of Anthropic's messages."""

    def __init__(self, heading: Heading, choice: ChoiceText, *, shortened: bool, request_id: str) -> None:
        """An empty answer.

        Args:
          choice: knows which stop string was found.
          shortened: the context holds fewer tokens than the request allows.
          request_id: repeated in errors.
        """
        self._heading = heading
        self._choice = choice
        self._full = "model_context_window_exceeded" if shortened else "max_tokens"
        self._request_id = request_id
        self._blocks: list[dict[str, Any]] = []
        self._said: list[str] = []
        self._open = False

    def opening(self) -> tuple[()]:
        """Nothing: the first event has counts, which are known with the first token."""
        return ()

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """The events of a delta."""
        if isinstance(delta, Start):
            yield _event(("message_start", {"message": self._message(usage())}))
        yield from map(_event, self._advance(delta))

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """Why the message ended, its tokens, and the end."""
        yield _event(("message_delta", {"delta": self._stop(), "usage": _counts(usage)}))
        yield _event(("message_stop", {}))

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The error; nothing follows it."""
        _, body = error_body(error, self._request_id)
        yield to_named_event("error", body)

    def fold(self, delta: Delta) -> None:
        """The same as `events`, without sending them."""
        for _ in self._advance(delta):
            pass

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The message in one piece."""
        return self._message(usage) | self._stop()

    def _advance(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case Reasoning(_, text):
                yield from self._say({"type": "thinking", "thinking": "", "signature": ""}, text)
            case Piece(_, text, _):
                yield from self._say({"type": "text", "text": ""}, text)
            case ToolCall(_, _, id, name):
                yield from self._begin({"type": "tool_use", "id": id, "name": name, "input": {}})
            case Arguments(_, _, text):
                yield self._add(text)
            case End():
                yield from self._end_block()

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        """Closes the block before, and opens a new one."""
        yield from self._end_block()
        self._blocks.append(block)
        self._open = True
        yield self._here("content_block_start", content_block=block)

    def _say(self, empty: dict[str, Any], text: str) -> Iterator[Event]:
        """A piece of a block like `empty`, which becomes the open one unless one of its kind is."""
        if not (self._open and self._blocks[-1]["type"] == empty["type"]):
            yield from self._begin(empty)
        yield self._add(text)

    def _add(self, text: str) -> Event:
        """A piece of the open block."""
        self._said.append(text)
        block = self._blocks[-1]
        kind, key = _DELTAS[block["type"]]
        return self._here("content_block_delta", delta={"type": kind, key: text})

    def _end_block(self) -> Iterator[Event]:
        """Closes the open block, if there is one: its pieces become its content."""
        if not self._open:
            return
        self._open = False
        said, block = "".join(self._said), self._blocks[-1]
        self._said.clear()
        if block["type"] == "tool_use":
            block["input"] = _input(said)
        else:
            block[block["type"]] = said
        if block["type"] == "thinking":
            block["signature"] = SIGNATURE
            yield self._here("content_block_delta", delta={"type": "signature_delta", "signature": SIGNATURE})
        yield self._here("content_block_stop")

    def _here(self, name: str, **fields: Any) -> Event:
        """An event of the newest block."""
        return name, {"index": len(self._blocks) - 1, **fields}

    def _stop(self) -> dict[str, Any]:
        """Why the message ended."""
        found = self._choice.stop_string
        if found is not None:
            reason = "stop_sequence"
        elif self._choice.finish == "length":
            reason = self._full
        else:
            called = any(block["type"] == "tool_use" for block in self._blocks)
            reason = "tool_use" if called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": found}

    def _message(self, usage: Usage) -> dict[str, Any]:
        """The message so far."""
        return {
            "id": self._heading.id,
            "type": "message",
            "role": "assistant",
            "model": self._heading.model,
            "content": self._blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _counts(usage),
        }


def _event(event: Event) -> bytes:
    name, fields = event
    return to_named_event(name, {"type": name, **fields})


def _counts(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached - usage.written,
        "cache_creation_input_tokens": usage.written,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        **usage.extension,
    }


def _input(text: str) -> Any:
    """The arguments as they were generated; of those that were cut short, what is complete."""
    data = text.encode("utf-8", "surrogatepass")
    with contextlib.suppress(ValueError):
        jiter.from_json(data, allow_inf_nan=False)
        return msgspec.Raw(data)
    with contextlib.suppress(ValueError):
        return jiter.from_json(data, allow_inf_nan=False, partial_mode=True)
    return {}
