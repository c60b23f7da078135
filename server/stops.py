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

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> str:
        """Takes the next piece and returns what is now certain to belong to the answer."""
        if self.found or not self._stops:
            return "" if self.found else text
        held = self._held + text
        match, open_at = self._first_match(held), self._open_prefix(held)
        if match is not None and match <= open_at:
            self.found, self._held = True, ""
            return held[:match]
        self._held = held[open_at:]
        return held[:open_at]

    def flush(self) -> str:
        """The text is complete: returns what was held back, up to a stop string in it."""
        held, self._held = self._held, ""
        match = self._first_match(held)
        self.found = self.found or match is not None
        return held[:match]

    def _first_match(self, text: str) -> int | None:
        places = (text.find(stop) for stop in self._stops)
        return min((place for place in places if place >= 0), default=None)

    def _open_prefix(self, text: str) -> int:
        """Where the longest suffix begins that is a proper prefix of a stop string; the end if none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            suffix = text[start:]
            if any(len(stop) > len(suffix) and stop.startswith(suffix) for stop in self._stops):
                return start
        return len(text)
