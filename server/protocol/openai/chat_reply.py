"""What a chat completion answers: chunks of a stream, or the one object that folds them.

Builds dicts with the keys in OpenAI's order. The one idea: everything that is equal in all chunks of an
answer (id, time, model, fingerprint) is fixed once, in `Heading`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ...encode import to_event, to_json
from ...text.deltas import Arguments, Delta, End, Piece, Reasoning, Start, ToolCall
from ...text.logprobs import Entry
from ..delivery import Delivery
from ..heading import Heading
from ..usage import Usage
from .openai_reply import OpenAiReply


@dataclass(slots=True)
class FoldedChoice:
    """The output of one choice so far, for a reply in one piece.

    Attributes:
      logprobs: the JSON of each entry, made as it comes: one object in place of many.
    """

    logprobs: list[msgspec.Raw] | None
    finish: str | None = None
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self, index: int) -> dict[str, Any]:
        """One of the reply's choices."""
        content = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            message |= {"content": content or None, "tool_calls": self.calls}
        if self.reasoning:
            message |= _reasoning("".join(self.reasoning))
        return {
            "index": index,
            "message": message | {"annotations": []},
            "logprobs": None if self.logprobs is None else {"content": self.logprobs, "refusal": None},
            "finish_reason": self.finish,
        }

    def add_entries(self, entries: list[Entry] | None) -> None:
        """Adds the entries of the text's next tokens, if the request wants them."""
        if self.logprobs is not None:
            self.logprobs.extend(msgspec.Raw(to_json(entry.to_dict())) for entry in entries or ())


class ChatReply(OpenAiReply):
    """One answer in OpenAI's shapes."""

    def __init__(
        self, heading: Heading, delivery: Delivery, *, choices: int, logprobs: bool, single: bool = False
    ) -> None:
        """An answer of this many choices.

        Args:
          logprobs: they were asked for. single: each choice is one call of a tool, so that its first chunk
            holds the call, as OpenAI's does.
        """
        super().__init__(heading, delivery)
        self._logprobs = logprobs
        self._single = single
        self._unopened: set[int] = set()
        self._folded = [FoldedChoice([] if logprobs else None) for _ in range(choices)]

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """One chunk a delta; the start of a choice that is one call alone comes with the call."""
        so_far = usage().to_dict() if self._delivery.continuous_usage else None
        match delta:
            case Start(index, calls):
                if calls and self._single:
                    self._unopened.add(index)
                else:
                    yield self._chunk(index, self._start(calls), so_far, _listed(self._none_yet()))
            case Reasoning(index, text):
                yield self._chunk(index, _reasoning(text), so_far)
            case Piece(index, text, entries):
                yield self._chunk(index, {"content": text}, so_far, _listed(entries))
            case ToolCall(index, number, id, name):
                function = {"name": name, "arguments": ""}
                calls = [{"index": number, "id": id, "type": "function", "function": function}]
                opens = number == 0 and index in self._unopened
                opening = {"role": "assistant", "content": None} if opens else {}
                closing = {"refusal": None} if opens else {}
                yield self._chunk(index, {**opening, "tool_calls": calls, **closing}, so_far)
            case Arguments(index, number, text):
                part = {"index": number, "function": {"arguments": text}}
                yield self._chunk(index, {"tool_calls": [part]}, so_far)
            case End(index, reason, entries):
                yield self._chunk(index, {}, so_far, _listed(entries or None), finish=reason)

    def fold(self, delta: Delta) -> None:
        """Adds to the choice's message."""
        folded = self._folded[delta.choice]
        match delta:
            case Reasoning(_, text):
                folded.reasoning.append(text)
            case Piece(_, text, entries):
                folded.text.append(text)
                folded.add_entries(entries)
            case ToolCall(_, _, id, name):
                function = {"name": name, "arguments": ""}
                folded.calls.append({"id": id, "type": "function", "function": function})
            case Arguments(_, number, text):
                folded.calls[number]["function"]["arguments"] += text
            case End(_, reason, entries):
                folded.finish = reason
                folded.add_entries(entries)

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The reply in one piece."""
        heading = self._heading
        return {
            "id": heading.id,
            "object": "chat.completion",
            "created": heading.created,
            "model": heading.model,
            "choices": [choice.to_dict(index) for index, choice in enumerate(self._folded)],
            "usage": usage.to_dict(),
            "service_tier": "default",
            "system_fingerprint": heading.fingerprint,
        }

    def _none_yet(self) -> list[Entry] | None:
        return [] if self._logprobs else None

    @staticmethod
    def _start(calls: bool) -> dict[str, Any]:
        """The role, once per choice."""
        return {"role": "assistant", "content": None if calls else "", "refusal": None}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        usage: dict[str, Any] | None,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return to_event(self._framed([choice], usage))

    def _framed(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        heading = self._heading
        chunk = {
            "id": heading.id,
            "object": "chat.completion.chunk",
            "created": heading.created,
            "model": heading.model,
            "service_tier": "default",
            "system_fingerprint": heading.fingerprint,
            "choices": choices,
        }
        return chunk | {"usage": usage} if self._delivery.include_usage else chunk


def _reasoning(text: str) -> dict[str, str]:
    """Under both names: clients read one or the other."""
    return {"reasoning_content": text, "reasoning": text}


def _listed(entries: list[Entry] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    return {"content": [entry.to_dict() for entry in entries], "refusal": None}
