"""Search for stop strings in a text that arrives in pieces, some of which are searched but not emitted.

The names of special tokens, which a stop string may be or contain, are searched and not emitted. The output
does not depend on how the text was split into pieces. So the longest suffix that may become a stop string is
held back, and if one stop string is complete while another, which began earlier, is still possible, the
decision waits for the earlier one.
"""

from collections.abc import Sequence
from itertools import compress


class StopSearch:
    """Emits a text up to the first occurrence of any stop string, and without it.

    Attributes:
      found: a stop string was found; nothing more is emitted. stop: the one that was found.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: also emits the stop string that was found."""
        self.found = False
        self.stop: str | None = None
        self._stops = tuple(sorted(stops, key=len))
        self._include = include
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._written: list[bool] = []

    def push(self, text: str, *, written: bool = True) -> str:
        """Adds the next piece and returns the text that is now certain to belong to the answer.

        Args:
          written: False for the name of a special token, which is never part of the answer and matters only
            as part of a stop string.
        """
        if self.found or not (written or any(text in stop for stop in self._stops)):
            return ""
        if not self._stops:
            return text
        self._held += text
        self._written += [written] * len(text)
        match, open_at = self._first_match(self._held), self._open_prefix(self._held)
        if match is not None and match[0] <= open_at:
            return self._emit(self._end_at(match))
        return self._emit(open_at)

    def flush(self) -> str:
        """Ends the text: returns what was held back, up to a stop string in it."""
        match = self._first_match(self._held)
        return self._emit(len(self._held) if match is None else self._end_at(match))

    def _emit(self, size: int) -> str:
        """The written part of the first `size` held characters; clears the rest after a stop string."""
        emitted = "".join(compress(self._held[:size], self._written))
        kept = len(self._held) if self.found else size
        self._held, self._written = self._held[kept:], self._written[kept:]
        return emitted

    def _end_at(self, match: tuple[int, str]) -> int:
        """Ends the text at a stop string; returns how many of the held characters belong to it."""
        place, stop = match
        self.found, self.stop = True, stop
        return place + len(stop) if self._include else place

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """The first position where a stop string begins, and the shortest one there."""
        found = ((text.find(stop), stop) for stop in self._stops)
        return min((match for match in found if match[0] >= 0), key=lambda match: match[0], default=None)

    def _open_prefix(self, text: str) -> int:
        """The start of the longest suffix that is a proper prefix of a stop string; the end if none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            suffix = text[start:]
            if any(len(stop) > len(suffix) and stop.startswith(suffix) for stop in self._stops):
                return start
        return len(text)
