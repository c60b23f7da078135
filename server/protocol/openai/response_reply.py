"""What the Responses API answers: named, numbered events, or the object that the last one carries.

The answer is a list of items: messages, whose text comes in one part, and calls of functions. The one idea:
an answer in one piece is the last event of a stream that nobody reads.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from ...encode import to_named_event
from ...errors import ApiError
from ...text.deltas import Arguments, Delta, End, Piece, Start, ToolCall
from ...text.logprobs import Entry
from ..heading import Heading, fresh_id
from ..usage import Usage

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields."""

_ENDED = {"length": "incomplete"}


class ResponseReply:
    """One answer in the shapes of the Responses API."""

    def __init__(self, heading: Heading, echo: dict[str, Any], *, temperature: float, top_p: float) -> None:
        """An empty answer; `echo`: the parameters of the request that it repeats."""
        self._heading = heading
        self._echo = echo | {"temperature": temperature, "top_p": top_p}
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._status = "in_progress"
        self._sent = 0

    def opening(self) -> Iterator[bytes]:
        """The events before the first delta."""
        for name in ("response.created", "response.in_progress"):
            yield self._event((name, {"response": self._response(None)}))

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """The events of a delta."""
        yield from map(self._event, self._advance(delta))

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The whole answer; whether it is complete is in the event's name."""
        yield self._event((f"response.{self._status}", {"response": self._response(usage)}))

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The error, in its own keys and in the form that clients raise, and the answer so far."""
        full = error.envelope()["error"]
        brief = {name: full[name] for name in ("code", "message", "param")}
        yield self._event(("error", brief | {"error": full}))
        self._status = "failed"
        failed = {"code": "server_error", "message": error.message}
        yield self._event(("response.failed", {"response": self._response(None) | {"error": failed}}))

    def fold(self, delta: Delta) -> None:
        """The same as `events`, without sending them."""
        for _ in self._advance(delta):
            pass

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        return self._response(usage)

    def _advance(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case Start(_, calls):
                if not calls:
                    yield from self._begin_message()
            case Piece(_, text, entries):
                if not self._in_item("message"):
                    yield from self._begin_message()
                yield self._add_text(text, entries or [])
            case ToolCall(_, _, id, name):
                yield from self._begin_call(id, name)
            case Arguments(_, _, text):
                self._items[-1]["arguments"] += text
                yield self._here("response.function_call_arguments.delta", {"delta": text})
            case End(_, reason, entries):
                if entries and self._in_item("message"):
                    yield self._add_text("", entries)
                self._status = _ENDED.get(reason, "completed")
                yield from self._end_item(self._status)

    def _in_item(self, kind: str) -> bool:
        return self._open and self._items[-1]["type"] == kind

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        """Ends the item before, and begins a new one."""
        yield from self._end_item("completed")
        self._items.append(item)
        self._open = True
        empty = item | {"content": []} if item["type"] == "message" else item
        yield "response.output_item.added", {"output_index": len(self._items) - 1, "item": empty}

    def _begin_message(self) -> Iterator[Event]:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        item = {"id": fresh_id("msg_"), "type": "message", "status": "in_progress"}
        yield from self._begin(item | {"content": [part], "role": "assistant"})
        yield self._here("response.content_part.added", {"content_index": 0, "part": part})

    def _begin_call(self, id: str, name: str) -> Iterator[Event]:
        item = {"id": fresh_id("fc_"), "type": "function_call", "status": "in_progress"}
        yield from self._begin(item | {"arguments": "", "call_id": id, "name": name})

    def _add_text(self, text: str, entries: list[Entry]) -> Event:
        part = self._items[-1]["content"][0]
        logprobs = [_logprob(entry) for entry in entries]
        part["text"] += text
        part["logprobs"] += logprobs
        return self._here(
            "response.output_text.delta", {"content_index": 0, "delta": text, "logprobs": logprobs}
        )

    def _end_item(self, status: str) -> Iterator[Event]:
        """The events at the end of an item."""
        if not self._open:
            return
        self._open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._here("response.output_text.done", {"content_index": 0, **text})
            yield self._here("response.content_part.done", {"content_index": 0, "part": part})
        else:
            call = {"name": item["name"], "arguments": item["arguments"]}
            yield self._here("response.function_call_arguments.done", call)
        yield "response.output_item.done", {"output_index": len(self._items) - 1, "item": item}

    def _here(self, name: str, fields: dict[str, Any]) -> Event:
        """An event of the newest item."""
        return name, {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, **fields}

    def _event(self, event: Event) -> bytes:
        name, fields = event
        number, self._sent = self._sent, self._sent + 1
        return to_named_event(name, {"type": name, "sequence_number": number, **fields})

    def _response(self, usage: Usage | None) -> dict[str, Any]:
        """The answer so far, in OpenAI's keys."""
        cut = self._status == "incomplete"
        answer = {
            "id": self._heading.id,
            "object": "response",
            "created_at": self._heading.created,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self._heading.model,
            "output": self._items,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }
        return answer | self._echo


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }


def _logprob(entry: Entry) -> dict[str, Any]:
    """As in a chat completion, except that the bytes of a special token are empty instead of null."""
    found = entry.to_dict()
    for each in (found, *found["top_logprobs"]):
        each["bytes"] = each["bytes"] or []
    return found
