"""The tokens that a call has used, and how OpenAI's chat and completions report them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a call.

    Attributes:
      prompt: each prompt counted once; cached, written: of these, found in the cache and written there.
      completion: of all choices; reasoning: of these, before the answers.
    """

    prompt: int
    completion: int
    cached: int
    reasoning: int = 0
    written: int = 0

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
        }
