"""The marks between which models reason, and the format that a model uses.

Sources: the chat templates of DeepSeek-R1, Qwen 3 and SmolLM 3 (`<think>`), and of Mistral's reasoning models
(`[THINK]`). A template may write the first mark itself, at the end of a prompt, or both marks, for a reply
without reasoning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Place = Literal["before", "inside", "after"]
"""Where a reply begins: before reasoning that may come, inside of it, or after it."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """One format of reasoning: the marks before and after it."""

    name: str
    begin: str
    end: str

    @property
    def marks(self) -> tuple[str, str]:
        """Texts that are special tokens in some vocabularies."""
        return self.begin, self.end

    def place_after(self, prompt: str) -> Place:
        """Where a reply begins if this is the end of its prompt."""
        text = prompt.rstrip()
        if text.endswith(self.begin):
            return "inside"
        return "after" if text.endswith(self.end) else "before"

    def place_within(self, message: str) -> Place:
        """Where a reply begins that continues this message."""
        begin, end = message.rfind(self.begin), message.rfind(self.end)
        if begin > end:
            return "inside"
        return "after" if end >= 0 else "before"


FORMATS = {
    each.name: each
    for each in (
        ReasoningFormat("deepseek", "<think>", "</think>"),
        ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    )
}


def format_of(chat_template: str | None, is_token: Callable[[str], bool]) -> ReasoningFormat | None:
    """The format whose marks a template has, else one whose marks are tokens; None if the model has none.

    Args:
      is_token: tells whether a text is one token of the vocabulary.
    """
    source = chat_template or ""
    named = (each for each in FORMATS.values() if any(mark in source for mark in each.marks))
    spelled = (each for each in FORMATS.values() if all(map(is_token, each.marks)))
    return next(named, None) or next(spelled, None)
