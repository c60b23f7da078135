"""The tokens that a call has used, and how OpenAI's chat and completions report them."""

from dataclasses import dataclass, field
from typing import Any

_DIGITS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a call has used of the engines.

    Attributes:
      device_seconds: its shares of the time of steps. page_seconds: the pages of the KV pool that it held,
        times the seconds of the steps meanwhile (`runtime/policy/accounts.py`).
      queue_seconds: from its submission to the first step of the first sequence that began; None before.
    """

    device_seconds: float = 0.0
    page_seconds: float = 0.0
    queue_seconds: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """In the keys of an answer; exact to a nanosecond."""
        waited = self.queue_seconds
        return {
            "device_seconds": round(self.device_seconds, _DIGITS),
            "page_seconds": round(self.page_seconds, _DIGITS),
            "queue_seconds": None if waited is None else round(waited, _DIGITS),
        }

    def __add__(self, other: "Resources") -> "Resources":
        """The sum of two parts of one call, the earlier one first."""
        return Resources(
            device_seconds=self.device_seconds + other.device_seconds,
            page_seconds=self.page_seconds + other.page_seconds,
            queue_seconds=other.queue_seconds if self.queue_seconds is None else self.queue_seconds,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a call.

    Attributes:
      prompt: each prompt counted once; cached, written: of these, found in the cache and written there.
      completion: of all choices; reasoning: of these, before the answers.
      resources: what the call has used of the engines. shown: whether the answer reports them.
    """

    prompt: int
    completion: int
    cached: int
    reasoning: int = 0
    written: int = 0
    resources: Resources = field(default_factory=Resources)
    shown: bool = False

    @property
    def extension(self) -> dict[str, Any]:
        """What the usage of an answer has in addition, in every protocol, if the request asks for it."""
        return {"distaff": self.resources.to_dict()} if self.shown else {}

    def to_dict(self) -> dict[str, Any]:
        """In the keys of `chat/completions`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {
                "cached_tokens": self.cached,
                "cache_write_tokens": self.written,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            **self.extension,
        }
