"""What the Responses API answers: named, numbered events, or the object that the last one carries.

The answer is a list of items (`response_items`): reasoning, messages, whose text has one part, and calls.
The one idea: an answer in one piece is the last event of a stream that nobody reads.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...encode import to_named_event
from ...errors import ApiError
from ...text.deltas import Delta, End
from ...tool_formats import Tool
from ..heading import Heading
from ..usage import Usage
from .response_calls import Event
from .response_items import OutputItems

_ENDED = {"length": "incomplete"}


class ResponseReply:
    """One answer in the shapes of the Responses API."""

    def __init__(
        self,
        heading: Heading,
        echo: dict[str, Any],
        *,
        temperature: float,
        top_p: float,
        tools: Iterable[Tool] = (),
        portable_reasoning: bool = False,
        keep: Callable[[dict[str, Any]], None] = lambda answer: None,
    ) -> None:
        """An empty answer.

        Args:
          echo: the parameters of the request that it repeats. tools: those that may be called.
          portable_reasoning: reasoning has `encrypted_content`. keep: stores the answer at its end.
        """
        self._keep = keep
        self._heading = heading
        self._echo = echo | {"temperature": temperature, "top_p": top_p}
        self._items = OutputItems(heading.id, tools, portable=portable_reasoning)
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
        yield self._event((f"response.{self._status}", {"response": self.whole(usage)}))

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
        answer = self._response(usage)
        self._keep(answer)
        return answer

    def _advance(self, delta: Delta) -> Iterator[Event]:
        if isinstance(delta, End):
            self._status = _ENDED.get(delta.reason, "completed")
            yield from self._items.end(delta, self._status)
        else:
            yield from self._items.advance(delta)

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
            "output": self._items.items,
            "service_tier": "default",
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }
        return answer | self._echo


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.written},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
        **usage.extension,
    }
