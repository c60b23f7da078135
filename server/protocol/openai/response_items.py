"""The items of a Responses answer, as they grow: reasoning, messages, calls, and the events about them.

One item is open at a time, the newest; the first delta of another kind ends it. `response_reply` numbers the
events and makes the answer around the items.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ...text.deltas import Arguments, Delta, End, Piece, Reasoning, ToolCall
from ...text.logprobs import Entry
from ...tool_formats import Tool
from ..heading import derived_id
from .response_calls import CallItem, Event

PLAIN = "text:"
"""Begins our `encrypted_content`, which is the reasoning itself: nothing is stored or hidden here."""


class OutputItems:
    """The items of one answer.

    Attributes:
      items: so far, in OpenAI's keys.
    """

    def __init__(self, answer: str, tools: Iterable[Tool] = (), *, portable: bool = False) -> None:
        """No items.

        Args:
          answer: the id of the answer, from which those of its items follow.
          tools: those that may be called.
          portable: reasoning also has `encrypted_content`, which clients send back.
        """
        self.items: list[dict[str, Any]] = []
        self._answer = answer
        self._tools = {tool.name: tool for tool in tools}
        self._portable = portable
        self._open = False
        self._call: CallItem | None = None

    def advance(self, delta: Delta) -> Iterator[Event]:
        """Adds a delta; yields its events. An end is in `end`."""
        match delta:
            case Reasoning(_, text):
                yield from self._enter("reasoning")
                self._part["text"] += text
                yield self._here("response.reasoning_text.delta", {"content_index": 0, "delta": text})
            case Piece(_, text, entries):
                yield from self._enter("message")
                yield self._add_text(text, entries or [])
            case ToolCall(_, _, id, name):
                call = CallItem(self._id, id, name, self._tools.get(name))
                yield from self._begin(call.item)
                self._call = call
            case Arguments(_, _, text):
                assert self._call is not None
                yield from self._of_call(self._call.advance(text))

    def end(self, delta: End, status: str) -> Iterator[Event]:
        """Ends the last item. An answer without any output is an empty message."""
        if not self.items:
            yield from self._enter("message")
        if delta.logprobs and self._in("message"):
            yield self._add_text("", delta.logprobs)
        yield from self._end_item(status)

    @property
    def _part(self) -> dict[str, Any]:
        """The one part of the newest item's text."""
        return self.items[-1]["content"][0]

    def _in(self, kind: str) -> bool:
        return self._open and self.items[-1]["type"] == kind

    def _enter(self, kind: str) -> Iterator[Event]:
        """Begins an item with a text, unless it is open."""
        if self._in(kind):
            return
        if kind == "message":
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            item = {"id": self._id("msg_"), "type": kind, "status": "in_progress"}
            yield from self._begin(item | {"content": [part], "role": "assistant"})
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": self._id("rs_"), "type": kind, "summary": [], "status": "in_progress"}
            yield from self._begin(item | {"content": [part], "encrypted_content": None})
        yield self._here("response.content_part.added", {"content_index": 0, "part": part})

    def _id(self, prefix: str) -> str:
        """The id of the next item."""
        return derived_id(prefix, 29, self._answer, len(self.items))

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        """Ends the item before, and begins a new one."""
        yield from self._end_item("completed")
        self.items.append(item)
        self._open = True
        empty = item | {"content": []} if "content" in item else item
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": empty}

    def _add_text(self, text: str, entries: list[Entry]) -> Event:
        logprobs = [_logprob(entry) for entry in entries]
        self._part["text"] += text
        self._part["logprobs"] += logprobs
        return self._here(
            "response.output_text.delta", {"content_index": 0, "delta": text, "logprobs": logprobs}
        )

    def _end_item(self, status: str) -> Iterator[Event]:
        """The events at the end of the open item."""
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if self._call is None:
            yield from self._end_text(item)
        else:
            yield from self._of_call(self._call.end())
            self._call = None
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _end_text(self, item: dict[str, Any]) -> Iterator[Event]:
        part, said = self._part, {"content_index": 0, "text": self._part["text"]}
        if item["type"] == "message":
            yield self._here("response.output_text.done", said | {"logprobs": part["logprobs"]})
        else:
            item["encrypted_content"] = PLAIN + part["text"] if self._portable else None
            yield self._here("response.reasoning_text.done", said)
        yield self._here("response.content_part.done", {"content_index": 0, "part": part})

    def _of_call(self, events: Iterable[Event]) -> Iterator[Event]:
        for name, fields in events:
            yield self._here(name, fields)

    def _here(self, name: str, fields: dict[str, Any]) -> Event:
        """An event of the newest item."""
        return name, {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}


def _logprob(entry: Entry) -> dict[str, Any]:
    """As in a chat completion, except that the bytes of a special token are empty instead of null."""
    found = entry.to_dict()
    for each in (found, *found["top_logprobs"]):
        each["bytes"] = each["bytes"] or []
    return found
