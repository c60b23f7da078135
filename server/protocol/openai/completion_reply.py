"""What a (legacy) completion answers: chunks of a stream, or the one object that folds them.

Log-probabilities are parallel lists, with the offset in the text at which each token begins.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...encode import to_event
from ...text.choice import ChoiceText
from ...text.deltas import Delta, End, Piece, Start
from ...text.logprobs import Entry
from ..delivery import Delivery
from ..heading import Heading
from ..usage import Usage
from .openai_reply import OpenAiReply


@dataclass(slots=True)
class FoldedText:
    """The output of one choice so far.

    Attributes:
      offset: characters in the text; entries: of its tokens; finish: why it ended.
    """

    offset: int = 0
    text: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    finish: str | None = None

    @property
    def likelihood(self) -> float:
        """The mean log-probability of the generated tokens; minus infinity if there are none."""
        values = [entry.logprob for entry in self.entries if entry.logprob is not None]
        return sum(values) / len(values) if values else float("-inf")


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt that the answer repeats before its completion."""

    text: str
    ids: tuple[int, ...]


class CompletionReply(OpenAiReply):
    """One answer in OpenAI's shapes."""

    def __init__(
        self,
        heading: Heading,
        delivery: Delivery,
        choices: Sequence[ChoiceText],
        *,
        per_prompt: int,
        answered: int,
        echoed: Sequence[EchoedPrompt],
        logprobs: int | None,
    ) -> None:
        """An answer to one or more prompts.

        Args:
          choices: those that generate, `per_prompt` for each prompt; the `answered` best of them are sent.
          echoed: the prompts that begin the texts; empty if they are not echoed.
          logprobs: how many alternatives to report; None reports no log-probabilities.
        """
        super().__init__(heading, delivery)
        self._choices = choices
        self._per_prompt = per_prompt
        self._answered = answered
        self._echoed = echoed
        self._logprobs = logprobs
        self._folded = [FoldedText() for _ in choices]

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """One chunk for each piece of text; an echoed prompt is the first of them."""
        so_far = usage().to_dict() if self._delivery.continuous_usage else None
        folded = self._folded[delta.choice]
        match delta:
            case Start(index):
                text, entries = self._prompt(index)
                if text or entries:
                    yield self._chunk(index, text, entries, None, so_far)
                    folded.offset += len(text)
            case Piece(index, text, entries):
                yield self._chunk(index, text, entries or [], None, so_far)
                folded.offset += len(text)
            case End(index, reason, entries):
                yield self._chunk(index, "", entries or [], reason, so_far)

    def fold(self, delta: Delta) -> None:
        """Adds to the choice's text."""
        folded = self._folded[delta.choice]
        match delta:
            case Piece(_, text, entries):
                folded.text.append(text)
                folded.entries += entries or []
            case End(_, reason, entries):
                folded.finish = reason
                folded.entries += entries or []

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The reply in one piece."""
        body = self._framed([self._whole(number, index) for number, index in enumerate(self._best())], None)
        return body | {"usage": usage.to_dict()}

    def _best(self) -> Iterator[int]:
        """The likeliest choices of each prompt; in their own order if all are returned."""
        for first in range(0, len(self._folded), self._per_prompt):
            numbers = list(range(first, first + self._per_prompt))
            if self._answered < self._per_prompt:
                numbers.sort(key=lambda number: -self._folded[number].likelihood)
            yield from numbers[: self._answered]

    def _whole(self, number: int, index: int) -> dict[str, Any]:
        folded = self._folded[index]
        text, entries = self._prompt(index)
        logprobs = self._listed([*entries, *folded.entries], 0)
        text += "".join(folded.text)
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": folded.finish}

    def _prompt(self, index: int) -> tuple[str, list[Entry]]:
        """The beginning of a choice's text; the first choice of the prompt has its scores."""
        if not self._echoed:
            return "", []
        number = index // self._per_prompt
        echoed, scored = self._echoed[number], self._choices[number * self._per_prompt]
        return echoed.text, scored.prompt_entries(echoed.ids) if self._logprobs is not None else []

    def _chunk(
        self, index: int, text: str, entries: list[Entry], finish: str | None, usage: dict[str, Any] | None
    ) -> bytes:
        logprobs = self._listed(entries, self._folded[index].offset) if text or entries else None
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        return to_event(self._framed([choice], usage))

    def _listed(self, entries: Sequence[Entry], offset: int) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        decoder, offsets = codecs.getincrementaldecoder("utf-8")("replace"), []
        for entry in entries:
            offsets.append(offset)
            offset += len(decoder.decode(entry.raw or b""))
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [_alternatives(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _framed(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        heading = self._heading
        body = {
            "id": heading.id,
            "object": "text_completion",
            "created": heading.created,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
            "choices": choices,
        }
        return body | {"usage": usage} if self._delivery.include_usage else body


def _alternatives(entry: Entry) -> dict[str, float] | None:
    """The likeliest tokens and the chosen one, by their texts; of equal texts the likelier."""
    if entry.logprob is None:
        return None
    found: dict[str, float] = {}
    for each in [*entry.top, entry]:
        name, value = each.token, each.logprob or 0.0
        found[name] = max(value, found[name]) if name in found else value
    return found
