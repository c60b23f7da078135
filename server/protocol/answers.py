"""What a chat completion answers: chunks of a stream, or the one object that folds them.

Builds dicts whose keys stand in OpenAI's order. The one idea: everything that is equal in all chunks of an
answer (id, time, model, fingerprint) is fixed once, in `Answer`.
"""

import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_ALPHABET = string.ascii_letters + string.digits


def completion_id() -> str:
    """`chatcmpl-` and 29 letters or digits."""
    return "chatcmpl-" + "".join(secrets.choice(_ALPHABET) for _ in range(29))


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The prompt counted once, and how much of it was found in the cache; the completion of all choices."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@dataclass(slots=True)
class FoldedChoice:
    """What one choice has said so far, for a reply in one piece."""

    logprobs: list[dict[str, Any]] | None
    finish: str | None = None
    text: list[str] = field(default_factory=list)

    def add(self, text: str, entries: list[dict[str, Any]] | None) -> None:
        """A piece of the content."""
        self.text.append(text)
        if self.logprobs is not None:
            self.logprobs.extend(entries or ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer's constants, and its shapes.

    Attributes:
      logprobs: log-probabilities were asked for.
      include_usage: every chunk has the key `usage`.
    """

    model: str
    fingerprint: str
    logprobs: bool
    include_usage: bool = False
    id: str = field(default_factory=completion_id)
    created: int = field(default_factory=lambda: int(time.time()))

    def start_chunk(self, index: int, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """The role, once per choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._choice_chunk(index, delta, _listed([] if self.logprobs else None), None, usage)

    def text_chunk(
        self, index: int, text: str, entries: list[dict[str, Any]] | None, usage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A piece of content, and nothing else."""
        return self._choice_chunk(index, {"content": text}, _listed(entries), None, usage)

    def finish_chunk(self, index: int, reason: str, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """The end of a choice."""
        return self._choice_chunk(index, {}, None, reason, usage)

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk, for those who asked for it."""
        return self._chunk([], usage)

    def completion(self, choices: Sequence[FoldedChoice], usage: dict[str, Any]) -> dict[str, Any]:
        """The whole reply."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [_folded(index, choice) for index, choice in enumerate(choices)],
            "usage": usage,
            "service_tier": "default",
            "system_fingerprint": self.fingerprint,
        }

    def _choice_chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        finish: str | None,
        usage: dict[str, Any] | None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._chunk([choice], usage)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return chunk


def _listed(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": entries, "refusal": None}


def _folded(index: int, choice: FoldedChoice) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(choice.text), "refusal": None, "annotations": []}
    return {
        "index": index,
        "message": message,
        "logprobs": _listed(choice.logprobs),
        "finish_reason": choice.finish,
    }
