"""What the Responses API answers: named, numbered events, or the object that the last of them carries.

The answer is a list of items: messages, whose text comes in one part, and calls of functions. The one idea:
an answer in one piece is the last event of a stream that nobody reads.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from ...encode import to_named_event
from ...errors import ApiError
from ...text.deltas import Arguments, Call, Delta, End, Piece, Start
from ...text.logprobs import Entry
from ..heading import Heading, fresh_id
from ..usage import Usage

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its fields."""

_ENDED = {"length": "incomplete"}


class ResponseReply:
    """One answer in the shapes of the Responses API."""

    def __init__(self, heading: Heading, echo: dict[str, Any], *, temperature: float, top_p: float) -> None:
        """An answer that has said nothing; `echo`: what it repeats of the request."""
        self._heading = heading
        self._echo = echo | {"temperature": temperature, "top_p": top_p}
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._status = "in_progress"
        self._sent = 0

    def opening(self) -> Iterator[bytes]:
        """That the answer is being worked on."""
        for name in ("response.created", "response.in_progress"):
            yield self._event((name, {"response": self._response(None)}))

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """What begins, goes on and ends with a delta."""
        yield from map(self._event, self._advance(delta))

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The whole answer; whether it is complete is in the event's name."""
        yield self._event((f"response.{self._status}", {"response": self._response(usage)}))

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The error, in its own keys and in that which clients raise, and what there is of the answer."""
        said = error.envelope()["error"]
        brief = {name: said[name] for name in ("code", "message", "param")}
        yield self._event(("error", brief | {"error": said}))
        self._status = "failed"
        told = {"code": "server_error", "message": error.message}
        yield self._event(("response.failed", {"response": self._response(None) | {"error": told}}))

    def fold(self, delta: Delta) -> None:
        """The same as `events`, unheard."""
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
                if not self._telling("message"):
                    yield from self._begin_message()
                yield self._add_text(text, entries or [])
            case Call(_, _, id, name):
                yield from self._begin_call(id, name)
            case Arguments(_, _, text):
                self._items[-1]["arguments"] += text
                yield self._here("response.function_call_arguments.delta", {"delta": text})
            case End(_, reason, entries):
                if entries and self._telling("message"):
                    yield self._add_text("", entries)
                self._status = _ENDED.get(reason, "completed")
                yield from self._end_item(self._status)

    def _telling(self, kind: str) -> bool:
        return self._open and self._items[-1]["type"] == kind

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        """A new item, after what was told before."""
        yield from self._end_item("completed")
        self._items.append(item)
        self._open = True
        told = item | {"content": []} if item["type"] == "message" else item
        yield "response.output_item.added", {"output_index": len(self._items) - 1, "item": told}

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
        """What is said when an item is told."""
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
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield self._here("response.function_call_arguments.done", said)
        yield "response.output_item.done", {"output_index": len(self._items) - 1, "item": item}

    def _here(self, name: str, fields: dict[str, Any]) -> Event:
        """An event of the newest item."""
        return name, {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, **fields}

    def _event(self, event: Event) -> bytes:
        name, fields = event
        number, self._sent = self._sent, self._sent + 1
        return to_named_event(name, {"type": name, "sequence_number": number, **fields})

    def _response(self, usage: Usage | None) -> dict[str, Any]:
        """The answer as far as it has come, in OpenAI's keys."""
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
    """As in a chat completion, but that special tokens have no bytes instead of null."""
    told = entry.to_dict()
    for each in (told, *told["top_logprobs"]):
        each["bytes"] = each["bytes"] or []
    return told
