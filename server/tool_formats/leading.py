"""A parser for replies in which calls need no mark: they begin the reply, perhaps in a list, or end it.

After text a mark starts a call at once, as in `parsers`. An object after text without a mark is a call only
if nothing but calls follows it, so that an example in an answer remains text.
"""

from collections.abc import Collection, Iterator

from .envelope import State
from .parsers import MOST_SPACE, MarkedParser, Open, space_before
from .parts import Part, Text, joined

_LONGEST_HEAD = 256
"""The most characters after which an object after text must have named a tool."""


class LeadingParser(MarkedParser):
    """A reply that begins with calls, perhaps in a list; after text, calls follow a mark or end the reply.

    Calls that end the reply are certain only at its end: they are kept in `_last`, their text in `_lead`.
    """

    def __init__(
        self,
        mark: str,
        opening: str,
        between: str,
        open_envelope: Open,
        *,
        heads: Collection[str] = (),
        behind_text: bool = True,
        parallel: bool,
    ) -> None:
        """An empty reply.

        Args:
          opening: the text before the first call. between: the texts that may follow a call.
          heads: the beginnings, without white space, of calls after text that have no mark.
          behind_text: calls may follow text.
        """
        super().__init__(mark, "", open_envelope, parallel=parallel)
        self._mode = self._at_start
        self._opening, self._between_calls = opening, between
        self._heads, self._behind_text = heads, behind_text
        self._last: list[Part] = []

    def flush(self) -> list[Part]:
        """The remaining parts at the end of the reply, which may be calls."""
        if self._mode == self._behind_last:
            return joined(part for part in self._last if self._wanted(part))
        return super().flush()

    def _at_start(self) -> Iterator[Part]:
        rest = self._buffer.lstrip()
        opened = rest.startswith(self._opening)
        if opened:
            rest = rest[len(self._opening) :].lstrip()
        place = len(self._buffer) - len(rest)
        crowded = place > MOST_SPACE + len(self._opening)
        if opened and rest.startswith("{") and not crowded:
            self._lead, self._buffer = self._buffer[:place], rest
            self._mode = self._in_call
        elif rest or crowded:
            self._mode = self._in_text
        yield from ()

    def _in_text(self) -> Iterator[Part]:
        brace = self._buffer.find("{") if self._heads else -1
        if not self._behind_text:
            text, self._buffer = self._buffer, ""
        elif brace >= 0 and self._begin not in self._buffer[:brace]:
            start = space_before(self._buffer, brace)
            text, self._lead = self._buffer[:start], self._buffer[start:brace]
            self._buffer = self._buffer[brace:]
            self._mode = self._at_brace
        else:
            yield from super()._in_text()
            return
        if text:
            yield Text(text)

    def _at_call(self) -> Iterator[Part]:
        rest = self._buffer.lstrip()
        place = len(self._buffer) - len(rest) + len(self._opening)
        opens = self._opening and rest.startswith(self._opening) and not self._lead.endswith(self._opening)
        if opens and place <= self._room:
            self._lead, self._buffer = self._lead + self._buffer[:place], self._buffer[place:]
        yield from super()._at_call()

    def _behind(self) -> Iterator[Part]:
        self._given_up()
        self._buffer = self._buffer.lstrip(self._between_calls)
        if self._buffer.startswith("{"):
            self._mode = self._in_call
        elif self._buffer:
            self._mode = self._in_text
        yield from ()

    def _at_brace(self) -> Iterator[Part]:
        """An object after text, which may be a call."""
        begun = "".join(self._buffer[:_LONGEST_HEAD].split())
        if any(begun.startswith(head) for head in self._heads):
            self._mode = self._in_last
        elif len(self._buffer) >= _LONGEST_HEAD or not any(head.startswith(begun) for head in self._heads):
            brace, self._buffer = self._buffer[0], self._buffer[1:]
            yield self._not_last(brace)

    def _in_last(self) -> Iterator[Part]:
        self._last += self._read_call(self._behind_last)
        if self._envelope.state is State.DONE:
            self._lead = self._given_up()
        elif self._envelope.state is State.BAD:
            yield self._not_last("")

    def _behind_last(self) -> Iterator[Part]:
        rest = self._buffer.lstrip(self._between_calls)
        self._lead += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        if rest.startswith("{"):
            self._mode = self._at_brace
        elif rest:
            yield self._not_last("")

    def _not_last(self, more: str) -> Text:
        """The text of calls that did not end the reply after all."""
        self._last.clear()
        self._mode = self._in_text
        return Text(self._given_up() + more)
