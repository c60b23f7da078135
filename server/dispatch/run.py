"""`Run`: one admitted sequence on its way to its end, on whichever engines it is computed.

A plain record: what was asked, what has come of it so far, where it is now. Who moves it is `dispatcher.py`.
The one idea: prompt and received tokens are all that another engine needs to go on.
"""

from dataclasses import dataclass, field, replace

from ...runtime.request import Request
from .event_stream import BufferedStream

MOST_DEATHS = 2
"""A sequence that was running when so many engines died, one after the other, is run apart from others."""
MOST_DEATHS_IN_ALL = 16
"""So many engines may die under one sequence, however far it gets in between."""
PROGRESS_CRASHED = 16
"""Tokens that a sequence must come beyond the place of an engine's crash to be no longer suspected of it:
more than are under way in an engine when it crashes."""
PROGRESS_KILLED = 2
"""The same where somebody else killed the engine, so that hardly a sequence is to blame: as many tokens as
are under way where nothing is drafted."""


@dataclass(eq=False, slots=True)
class Run:
    """One sequence.

    Attributes:
      request: what was asked, its seed drawn. stream: who reads the events.
      arrival: its number in the order of arrival. submitted: when it came.
      cost: what it takes of an engine, in seconds of a slot; changes only while it does not wait.
      digests: of the beginnings of its prompt, for the router.
      tokens: those received so far.
      engine: the number of the engine that computes it; None while it waits.
      wire_id: its id there: another one each time that it moves.
      began: when that engine was given it. started: whether a token of it has come from there.
      moves: how often it has been taken from an engine.
      deaths: engines that died while they computed it, at about the same place. all_deaths: wherever.
      held_until: until when it waits for the engine that knows its beginning; None if that is undecided.
      held_for: that engine's number; None if it waits for none.
      stuck_since: since when no engine that has a slot has the pages for it; None if that was not seen.
    """

    request: Request
    stream: BufferedStream
    arrival: int
    submitted: float
    cost: float = 0.0
    digests: list[bytes] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    engine: int | None = None
    wire_id: str = ""
    began: float = 0.0
    started: bool = False
    moves: int = 0
    deaths: int = 0
    all_deaths: int = 0
    held_until: float | None = None
    held_for: int | None = None
    stuck_since: float | None = None
    _cleared_at: int = 0

    @property
    def client(self) -> str:
        return self.request.client

    @property
    def length(self) -> int:
        """Tokens of the prompt and received ones."""
        return len(self.request.prompt) + len(self.tokens)

    @property
    def suspected(self) -> bool:
        """Whether it may be what the engines died of."""
        return self.deaths >= MOST_DEATHS

    @property
    def guilty(self) -> bool:
        """Whether another engine must not be risked for it: one has died while it ran alone."""
        return self.deaths > MOST_DEATHS or self.all_deaths > MOST_DEATHS_IN_ALL

    def died(self, *, killed: bool) -> None:
        """The engine that computed it has died; `killed`: by somebody else's signal."""
        self.all_deaths += 1
        self.clear_if_past()
        if not self.deaths:
            self._cleared_at = len(self.tokens) + (PROGRESS_KILLED if killed else PROGRESS_CRASHED)
        self.deaths += 1

    def clear_if_past(self) -> bool:
        """Ends the suspicion if it has come beyond the place where engines died; whether it has."""
        if len(self.tokens) <= self._cleared_at:
            return False
        self.deaths = 0
        return True

    def continuation(self) -> Request:
        """What the next engine is asked, under `wire_id`."""
        return replace(self.request, id=self.wire_id, generated=tuple(self.tokens))
