"""What TGI's /generate answers: an object, or one event a token of which the last has the whole text.

Special tokens, the end token too, are listed by their names, though the text is without them.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...encode import to_event
from ...errors import ApiError
from ...text.choice import ChoiceText
from ...text.deltas import Delta, End, Piece
from ...text.logprobs import Entry
from ..usage import Usage
from .generate import GenerateCall
from .headers import Headers, late_headers


class GenerateReply:
    """One answer in TGI's shapes."""

    def __init__(
        self,
        call: GenerateCall,
        choices: Sequence[ChoiceText],
        prompt: Sequence[int],
        seed: int | None,
        *,
        listed: bool,
    ) -> None:
        """An empty answer.

        Args:
          seed: the seed of the draws; None for a greedy answer. listed: the object comes in a list.
        """
        self._listed = listed
        self._call = call
        self._choices = choices
        self._prompt = prompt
        self._seed = seed
        self._texts = ["" for _ in choices]
        self._tokens: list[list[tuple[str, Entry]]] = [[] for _ in choices]
        self._sent = 0

    def opening(self) -> tuple[()]:
        """Nothing."""
        return ()

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> Iterator[bytes]:
        """All tokens except the newest, which is held back because it can be the last."""
        self.fold(delta)
        tokens = self._tokens[0]
        while self._sent < len(tokens) - 1:
            yield self._event(self._sent)
            self._sent += 1

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The last token, with the text and what is known of it."""
        details = {
            "finish_reason": self._reason(0),
            "generated_tokens": self._choices[0].tokens,
            "seed": self._seed,
            "input_length": usage.prompt,
        }
        yield self._event(self._sent, self._whole_text(0), details)

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """The error, and no more."""
        yield to_event(error_body(error)[1])

    def fold(self, delta: Delta) -> None:
        """Adds text and tokens."""
        if isinstance(delta, Piece):
            self._texts[delta.choice] += delta.text
        if isinstance(delta, Piece | End):
            self._tokens[delta.choice] += _texts(delta.logprobs or [])

    def whole(self, usage: Usage) -> Any:
        """The best of the answers."""
        best = self._best
        body: dict[str, Any] = {"generated_text": self._whole_text(best)}
        if self._call.details or self._call.prefill:
            body["details"] = self._details(best)
        return [body] if self._listed else body

    def late_headers(self, arrived: float, admitted: float, ended: float) -> Headers:
        """What is known of the answer when it is whole; times in seconds of one clock."""
        first = self._choices[self._best].first
        return late_headers(
            arrived=arrived,
            admitted=admitted,
            ended=ended,
            waited=first and first.waited,
            prompt=len(self._prompt),
            generated=self._choices[self._best].tokens,
        )

    @property
    def _best(self) -> int:
        return max(range(len(self._choices)), key=self._likelihood)

    def _details(self, index: int) -> dict[str, Any]:
        tokens = self._tokens[index]
        details = {
            "finish_reason": self._reason(index),
            "generated_tokens": self._choices[index].tokens,
            "seed": self._seed,
            "prefill": self._prefill(),
            "tokens": [_token(text, entry) for text, entry in tokens],
        }
        if self._call.sampling.logprobs:
            details["top_tokens"] = [_alternatives(entry) for _, entry in tokens]
        return details

    def _prefill(self) -> list[dict[str, Any]]:
        """The prompt's tokens, which the first choice has scored."""
        if not self._call.prefill:
            return []
        entries = self._choices[0].prompt_entries(self._prompt)
        return [{"id": entry.id, "text": entry.token, "logprob": entry.logprob} for entry in entries]

    def _likelihood(self, index: int) -> float:
        values = [entry.logprob or 0.0 for _, entry in self._tokens[index]]
        return sum(values) / len(values) if values else float("-inf")

    def _whole_text(self, index: int) -> str:
        return self._call.inputs * self._call.full_text + self._texts[index]

    def _reason(self, index: int) -> str:
        choice = self._choices[index]
        if choice.finish == "length":
            return "length"
        return "stop_sequence" if choice.stopped else "eos_token"

    def _event(self, place: int, whole: str | None = None, details: dict[str, Any] | None = None) -> bytes:
        tokens = self._tokens[0]
        text, entry = tokens[place] if place < len(tokens) else ("", None)
        event: dict[str, Any] = {"index": place + 1, "token": _token(text, entry)}
        if self._call.sampling.logprobs and entry:
            event["top_tokens"] = _alternatives(entry)
        return to_event(event | {"generated_text": whole, "details": details})


def error_body(error: ApiError) -> tuple[int, dict[str, str]]:
    """TGI's status and body for an error of ours."""
    if error.status == 400:
        message = f"Input validation error: {error.message}"
        return 422, {"error": message, "error_type": "validation"}
    if error.status == 503:
        return 429, {"error": "Model is overloaded", "error_type": "overloaded"}
    if error.status == 429:
        return 429, {"error": error.message, "error_type": "overloaded"}
    kind = "generation" if error.status == 500 else "validation"
    status = 424 if error.status == 500 else error.status
    return status, {"error": error.message, "error_type": kind}


def _texts(entries: Sequence[Entry]) -> Iterator[tuple[str, Entry]]:
    """Each with its text: a character that several make together is the last one's."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for entry in entries:
        yield entry.token if entry.raw is None else decoder.decode(entry.raw), entry


def _token(text: str, entry: Entry | None) -> dict[str, Any]:
    if entry is None:
        return {"id": 0, "text": "", "logprob": None, "special": True}
    return {"id": entry.id, "text": text, "logprob": entry.logprob, "special": entry.raw is None}


def _alternatives(entry: Entry) -> list[dict[str, Any]]:
    return [_token(each.token, each) for each in entry.top]
