"""Token events of one call -> what its choices say: starts, pieces of text, ends.

Knows ids, text and stop strings; not JSON, not HTTP. The one idea: `deltas` is the only path, a stream sends
each delta as it comes and a whole reply folds the same deltas. Choices are first heard of in the order
0, 1, 2 …, as clients demand, whatever order the engine answers in.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..runtime.request import EngineFailed, TokenEvent
from .generation import Generation
from .logprobs import LogprobAligner
from .stops import StopSearch
from .text import TextModel

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Start:
    """A choice is heard of for the first time."""

    choice: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a choice, never empty, and the entries of the tokens that it completes."""

    choice: int
    text: str
    logprobs: list[dict[str, Any]] | None


@dataclass(frozen=True, slots=True)
class End:
    """A choice is complete."""

    choice: int
    reason: Finish


Delta = Start | Piece | End


class ChoiceText:
    """One choice: its tokens become text, and end at a stop string.

    Attributes:
      tokens: how many were generated, the end token not counted.
      cached_tokens: of the prompt, found in the cache.
      finish: why it ended; None while it goes on.
    """

    def __init__(
        self, text: TextModel, prompt: Sequence[int], stops: Sequence[str], *, logprobs: bool
    ) -> None:
        self.tokens = self.cached_tokens = 0
        self.finish: Finish | None = None
        self._detokenizer = text.detokenizer(prompt)
        self._stops = StopSearch(stops)
        self._aligner = LogprobAligner(text) if logprobs else None

    def push(self, event: TokenEvent) -> tuple[str, list[dict[str, Any]] | None]:
        """The text, and the entries, that are certain after `event`; sets `finish` at the end."""
        self.cached_tokens += event.cached_tokens
        certain = self._take(event) if event.token is not None else ""
        text = self._stops.push(certain)
        if event.finish is not None and not self._stops.found:
            text += self._flush()
        if self._stops.found:
            self.finish = "stop"
        elif event.finish is not None:
            self.finish = "length" if event.finish == "length" else "stop"
        return text, self._entries(text)

    def _take(self, event: TokenEvent) -> str:
        assert event.token is not None
        self.tokens += 1
        text = self._detokenizer.push(event.token)
        if self._aligner is not None:
            assert event.logprobs is not None
            self._aligner.add(event.token, event.logprobs, text)
        return text

    def _flush(self) -> str:
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()

    def _entries(self, text: str) -> list[dict[str, Any]] | None:
        if self._aligner is None:
            return None
        entries = self._aligner.release(text) if text else []
        return entries + self._aligner.cut() if self._stops.found else entries


async def deltas(
    generation: Generation, choices: Sequence[ChoiceText], silence: float
) -> AsyncIterator[Delta | None]:
    """What the choices say, until the last has ended; None after each `silence` seconds of nothing.

    Raises:
      EngineFailed: the engine was lost, or failed one of the sequences.
    """
    waiting: list[list[TokenEvent]] = [[] for _ in choices]
    started, ended = 0, 0
    while ended < len(choices):
        heard = await generation.next(silence)
        if heard is None:
            yield None
            continue
        index, event = heard
        if event.finish == "error":
            raise EngineFailed(event.error or "the engine failed the request")
        waiting[index].append(event)
        if index > started:
            continue
        for choice in range(index, len(choices) if index == started else index + 1):
            if not waiting[choice]:
                break
            if choice == started:
                started += 1
                yield Start(choice)
            for delta in _speak(choice, choices[choice], waiting[choice], generation):
                ended += isinstance(delta, End)
                yield delta


def _speak(choice: int, text: ChoiceText, events: list[TokenEvent], generation: Generation) -> list[Delta]:
    """The deltas of one choice for the events that waited for it."""
    said: list[Delta] = []
    for event in events:
        if text.finish is not None:
            break
        piece, logprobs = text.push(event)
        if piece:
            said.append(Piece(choice, piece, logprobs))
        if text.finish is not None:
            said.append(End(choice, text.finish))
            generation.end(choice)
    events.clear()
    return said
