"""The tokens that a call has used, and how OpenAI's chat and completions report them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Each prompt counted once, and how much of it was found in the cache; the completion of all choices, and
    how much of that was reasoning."""

    prompt: int
    completion: int
    cached: int
    reasoning: int = 0

    def to_dict(self) -> dict[str, Any]:
        """In the keys of `chat/completions`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
