"""Stop strings, searched in a text that arrives in pieces.

Knows text only. The one idea: what is emitted must not depend on how the text was cut into pieces. So the
longest suffix that may yet become a stop string is held back, and where one stop string has ended while
another, which began earlier, is still possible, the decision waits for the earlier one.
"""

from collections.abc import Sequence


class StopSearch:
    """Emits a text up to, and without, the first occurrence of any stop string.

    Attributes:
      found: a stop string was found; nothing is emitted any more.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string that is found is emitted too."""
        self.found = False
        self._stops = tuple(sorted(stops, key=len))
        self._include = include
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> str:
        """Takes the next piece and returns what is now certain to belong to the answer."""
        if self.found or not self._stops:
            return "" if self.found else text
        held = self._held + text
        match, open_at = self._first_match(held), self._open_prefix(held)
        if match is not None and match[0] <= open_at:
            self.found, self._held = True, ""
            return held[: self._cut(match)]
        self._held = held[open_at:]
        return held[:open_at]

    def flush(self) -> str:
        """The text is complete: returns what was held back, up to a stop string in it."""
        held, self._held = self._held, ""
        match = self._first_match(held)
        if match is None:
            return held
        self.found = True
        return held[: self._cut(match)]

    def _cut(self, match: tuple[int, str]) -> int:
        place, stop = match
        return place + len(stop) if self._include else place

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """The first place where a stop string begins, and the shortest that does."""
        found = ((text.find(stop), stop) for stop in self._stops)
        return min((match for match in found if match[0] >= 0), key=lambda match: match[0], default=None)

    def _open_prefix(self, text: str) -> int:
        """Where the longest suffix begins that is a proper prefix of a stop string; the end if none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            suffix = text[start:]
            if any(len(stop) > len(suffix) and stop.startswith(suffix) for stop in self._stops):
                return start
        return len(text)
