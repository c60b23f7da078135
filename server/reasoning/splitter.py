"""Splits the text of a reply, as it arrives, into reasoning and answer.

Where the marks are, and how many, is a matter of `formats`. The result does not depend on how the text is
cut into pieces: text that may still become a mark, or white space that may end the reasoning, is held back.
White space around the reasoning and before the answer is dropped, as DeepSeek's own API does; the end of the
answer is unchanged. Only the first reasoning of a reply is recognised: marks in the answer are text.
"""

from dataclasses import dataclass

from .formats import Place, ReasoningFormat


@dataclass(frozen=True, slots=True)
class Split:
    """What is certain after a piece of text.

    Attributes:
      thought, answer: the text of either. skipped: characters of the reply, up to the answer, that are now
        known not to be part of it: reasoning, marks and white space.
    """

    thought: str = ""
    answer: str = ""
    skipped: int = 0


class ReasoningSplitter:
    """The state of one reply.

    Attributes:
      found: there is reasoning, and not only its marks. ended: the reasoning has ended, or there is none.
    """

    def __init__(self, format: ReasoningFormat, place: Place = "before") -> None:
        """`place`: where the reply begins."""
        self.found = False
        self.ended = place == "after"
        self._format = format
        self._inside = place == "inside"
        self._at_start = not self.ended
        self._gap = False
        self._buffer = ""

    @property
    def answering(self) -> bool:
        """Whether text that comes now is part of the answer unless it begins with a mark."""
        return self.ended or not (self._inside or self._buffer)

    @property
    def inside(self) -> bool:
        """Whether the reasoning has begun and not ended."""
        return self._inside and not self.ended

    def push(self, text: str, *, last: bool = False) -> Split:
        """Adds text; `last`: the reply ends with it, so nothing is held back."""
        self._buffer += text
        before = len(self._buffer)
        thought = "" if self.ended else self._thought(last)
        if self._gap:
            self._buffer = self._buffer.lstrip()
            self._gap = not self._buffer
        skipped, answer = before - len(self._buffer), ""
        if self.ended:
            answer, self._buffer = self._buffer, ""
        return Split(thought, answer, skipped)

    def _thought(self, last: bool) -> str:
        """Consumes the buffer as far as it certainly precedes the answer; returns the reasoning in it."""
        if self._at_start:
            self._begin(last)
        if self._at_start or not self.inside:
            return ""
        mark = self._format.end
        place = self._buffer.find(mark)
        self.ended = self._gap = place >= 0
        if self.ended:
            text, rest = self._buffer[:place].rstrip(), self._buffer[place + len(mark) :]
        else:
            certain = len(self._buffer) - (0 if last else _overlap(self._buffer, mark))
            text = self._buffer[:certain].rstrip()
            rest = "" if last else self._buffer[len(text) :]
        self._buffer = rest
        thought = text if self.found else text.lstrip()
        self.found = self.found or bool(thought)
        return thought

    def _begin(self, last: bool) -> None:
        """Looks for the first mark, which models write even where the prompt has it already."""
        mark, text = self._format.begin, self._buffer.lstrip()
        if text.startswith(mark):
            self._inside = True
            self._buffer = text[len(mark) :]
        elif not last and mark.startswith(text):
            return
        elif not self._inside:
            self.ended = True
        self._at_start = False


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of the text that may become the mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)
