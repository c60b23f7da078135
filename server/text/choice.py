"""The tokens of one choice -> its deltas: reasoning, pieces of text, tool calls, an end.

Reasoning is split off first, so that stop strings, log-probabilities and calls are those of the answer.
`deltas` defines the records, and `choices` runs all choices of a call.
"""

from collections.abc import Callable, Sequence

from ...runtime.request import InvalidRequest, TokenEvent
from ..engine_client import RequestFailed
from ..protocol.structured import Constraint
from ..reasoning import ReasoningSplitter
from ..tool_formats import CallArguments, CallStart, Text, ToolCallParser
from .deltas import Arguments, Delta, End, Finish, Piece, Reasoning, Start, ToolCall
from .logprobs import Entry, LogprobAligner, entry_of, unwritten
from .stops import StopSearch
from .text_model import TokenTexts

CallIds = Callable[[int, int], str]
"""The id of a call of a tool, from the number of the choice and of the call in it."""


def _numbered(choice: int, call: int) -> str:
    return f"call_{choice}_{call}"


class ChoiceText:
    """One choice: converts its tokens to text or tool calls, and ends it at a stop string.

    Attributes:
      tokens: the number of generated tokens, including the end token and those of the stop string.
      cached_tokens, written_tokens: prompt tokens found in the prefix cache, and written there.
      reasoning_tokens: those before the answer, if there is reasoning; its marks are counted.
      first: the first event, which carries the results for the prompt.
      finish: the finish reason; None while the choice runs.
    """

    def __init__(
        self,
        text: TokenTexts,
        prompt: Sequence[int],
        stops: StopSearch,
        *,
        logprobs: bool,
        reasoning: ReasoningSplitter | None = None,
        show_reasoning: bool = True,
        parser: ToolCallParser | None = None,
        named: bool = False,
        call_ids: CallIds = _numbered,
        mute: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        """A choice without tokens.

        Args:
          logprobs: return log-probability entries.
          reasoning: finds the reasoning before the answer; None if the text is not split.
          show_reasoning: return it; else it is only counted.
          parser: finds tool calls in the text; None without tools.
          named: the request names the function to call, so that calling it is a plain stop.
          call_ids: name its calls.
          mute: only the first event's results for the prompt are requested, no text.
          constraint: the grammar's source, for an error that names it.
        """
        self.tokens = self.cached_tokens = self.written_tokens = 0
        self.first: TokenEvent | None = None
        self.finish: Finish | None = None
        self._detokenizer = text.detokenizer(prompt)
        self._stops = stops
        self._aligner = LogprobAligner(text) if logprobs else None
        self._reasoning = reasoning
        self._show_reasoning = show_reasoning
        self._before_answer = 0
        self._parser = parser
        self._named = named
        self._call_ids = call_ids
        self._mute = mute
        self._constraint = constraint
        self._text = text
        self._calls = 0
        self._held = ""
        self._started = False

    @property
    def reasoning_tokens(self) -> int:
        return self._before_answer if self._reasoning and self._reasoning.found else 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._stops.stop

    def push(self, choice: int, event: TokenEvent) -> list[Delta]:
        """The deltas that are certain after `event`; sets `finish` at the end."""
        self.first = self.first or event
        self.cached_tokens += event.cached_tokens
        self.written_tokens += event.written_tokens
        if self._mute:
            self.finish = "length"
            return [Start(choice), End(choice, "length")]
        self.tokens += event.token is not None or event.end is not None
        thought, text = self._take(event) if event.token is not None else ("", "")
        if event.finish is not None and not self._stops.found:
            last, rest = self._flush()
            thought, text = thought + last, text + rest
        ended = self._stops.found or event.finish is not None
        found = self._deltas(choice, thought, text, ended=ended)
        if ended:
            self.finish = self._reason(event)
            found.append(End(choice, self.finish, self._last_entries(event)))
        return found

    def failure(self, event: TokenEvent) -> Exception:
        """The exception for a choice that the engine failed."""
        reason = event.error or "the engine failed the request"
        if event.param == "grammar" and self._constraint is not None:
            return self._constraint.refusal(reason)
        return InvalidRequest(reason, event.param) if event.param else RequestFailed(reason)

    def prompt_entries(self, prompt: Sequence[int]) -> list[Entry]:
        """The entries of the prompt's tokens, with the scores of the first event if there are any."""
        scores = (self.first and self.first.prompt_logprobs) or (None,) * (len(prompt) - 1)
        return [
            entry_of(self._text, token, self._text.token_bytes(token) or b"", score)
            for token, score in zip(prompt, [None, *scores], strict=True)
        ]

    def _take(self, event: TokenEvent) -> tuple[str, str]:
        """The reasoning and the text of the answer that are certain after a token.

        Stop strings are searched in the answer, with the special tokens in it.
        """
        assert event.token is not None
        text = self._detokenizer.push(event.token)
        if self._aligner is not None:
            assert event.logprobs is not None
            self._aligner.add(event.token, event.logprobs, text)
        if self._reasoning is not None and not self._reasoning.ended:
            self._before_answer = self.tokens
        thought, text = self._split(text)
        certain = self._stops.push(text)
        answering = self._reasoning is None or self._reasoning.answering
        if answering and self._text.token_bytes(event.token) is None:
            certain += self._stops.push(self._text.token_name(event.token), written=False)
        return thought, certain

    def _flush(self) -> tuple[str, str]:
        thought, text = self._split(self._detokenizer.flush(), last=True)
        return thought, self._stops.push(text) + self._stops.flush()

    def _split(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """The reasoning and the answer in the next text; no entry is released for what is not the answer."""
        if self._reasoning is None:
            return "", text
        split = self._reasoning.push(text, last=last)
        if self._aligner is not None:
            self._aligner.skip(split.skipped)
        return split.thought, split.answer

    def _reason(self, event: TokenEvent) -> Finish:
        if event.finish == "length" and not self._stops.found:
            return "length"
        return "tool_calls" if self._calls and not self._named else "stop"

    def _deltas(self, choice: int, thought: str, text: str, *, ended: bool) -> list[Delta]:
        """The reasoning and the text as deltas; a start comes before the first one."""
        if self._parser is None:
            found = self._piece(choice, text, all=ended)
        else:
            parts = self._parser.push(text) if text else []
            parts = [*parts, *self._parser.flush()] if ended else parts
            found = [delta for part in parts for delta in self._part(choice, part)]
            found += self._piece(choice, "", all=True) if ended else []
        if thought and self._show_reasoning:
            found = [Reasoning(choice, thought), *found]
        if self._started or (self._parser is not None and not found and not ended):
            return found
        self._started = True
        return [Start(choice, bool(found) and isinstance(found[0], ToolCall)), *found]

    def _piece(self, choice: int, text: str, *, all: bool = False) -> list[Delta]:
        """The text as a piece; with log-probabilities only up to the end of a token, unless `all` is set.

        Otherwise the entry of a token in which a stop string begins could be lost.
        """
        if self._aligner is not None and not self._calls:
            text = self._held + text
            size = len(text) if all else self._aligner.reach(len(text))
            text, self._held = text[:size], text[size:]
        return [Piece(choice, text, self._entries(text))] if text else []

    def _part(self, choice: int, part: Text | CallStart | CallArguments) -> list[Delta]:
        match part:
            case Text(text):
                return self._piece(choice, text)
            case CallStart(name):
                before = self._piece(choice, "", all=True)
                self._calls += 1
                return [
                    *before,
                    ToolCall(choice, self._calls - 1, self._call_ids(choice, self._calls - 1), name),
                ]
            case CallArguments(text):
                return [Arguments(choice, self._calls - 1, text)]

    def _entries(self, text: str) -> list[Entry] | None:
        """The entries of the tokens that the text completes; None for text after a call."""
        if self._aligner is None:
            return None
        entries = [] if self._calls else self._aligner.release(text)
        return entries + self._aligner.cut() if self._stops.found else entries

    def _last_entries(self, event: TokenEvent) -> list[Entry] | None:
        """The remaining entries at the end of the choice; the end token's is the last one."""
        if self._aligner is None:
            return None
        if self._calls or (self._reasoning is not None and self._reasoning.inside):
            return []
        entries = self._aligner.rest()
        if event.end is not None:
            entries.append(unwritten(self._text, event.end, event.logprobs))
        return entries
