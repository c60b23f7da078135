"""`TrackedSequence`: one accepted sequence from admission to its end, on any number of engines.

A record of the request, the tokens received so far, and where the sequence is. `dispatcher.py` moves it.
Another engine needs only the prompt and the received tokens to continue it.
"""

import logging
import math
from dataclasses import dataclass, field, replace

from ...runtime.request import EngineFailed, Rank, Request, TokenEvent
from .event_stream import BufferedStream

log = logging.getLogger(__name__)

MOST_CRASHES = 2
"""A sequence that was running when this many engines crashed is run in isolation."""
MOST_DEATHS = 16
"""The most engines that may die while they run one sequence, for any reason, however far it gets."""
PROGRESS = 16
"""A sequence is cleared of suspicion this many tokens after the position of an engine's crash: more than an
engine has in flight when it crashes."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class TrackedSequence:
    """One sequence.

    Attributes:
      request: the request, with its seed drawn. stream: the stream of its events.
      arrival: its number in the order of arrival. submitted: the time of arrival.
      cost: its cost in seconds of a slot; changes only while it does not wait.
      digests: of its prompt's prefixes, for the router.
      tokens: the tokens received so far.
      last_token: when the last of them was received; infinite before the first.
      engine: the number of the engine that computes it; None while it waits.
      wire_id: its id on the wire: a new one each time that it moves.
      used: device-seconds and page-seconds, as of its last event; used_before: those of earlier engines.
      began: when it was sent to that engine. started: whether the engine has returned a token of it.
      moves: how often it has been moved off an engine.
      crashes: engines that crashed while they computed it, at about the same position.
      deaths: engines that died while they computed it, at any position and for any reason.
      held_until: until when it waits for the engine with its prefix; None if that is undecided.
      held_for: that engine's number; None if it waits for none.
      stuck_since: since when no engine with a free slot has the pages for it; None if not observed.
    """

    request: Request
    stream: BufferedStream
    arrival: int
    submitted: float
    cost: float = 0.0
    digests: list[bytes] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    last_token: float = math.inf
    engine: int | None = None
    wire_id: str = ""
    used: tuple[float, float] = (0.0, 0.0)
    used_before: tuple[float, float] = (0.0, 0.0)
    began: float = 0.0
    started: bool = False
    moves: int = 0
    crashes: int = 0
    deaths: int = 0
    held_until: float | None = None
    held_for: int | None = None
    stuck_since: float | None = None
    _cleared_at: int = 0

    @property
    def client(self) -> str:
        return self.request.client

    @property
    def weight(self) -> float:
        return self.request.weight

    @property
    def background(self) -> bool:
        return self.request.background

    @property
    def rank(self) -> Rank:
        return self.request.rank

    @property
    def order(self) -> tuple[float, int]:
        """Its position in its client's queue: interrupted streams first, by the length of the pause; then by
        arrival."""
        return self.last_token, self.arrival

    @property
    def length(self) -> int:
        """The number of prompt tokens and received tokens."""
        return len(self.request.prompt) + len(self.tokens)

    @property
    def suspected(self) -> bool:
        """Whether it may have crashed engines."""
        return self.crashes >= MOST_CRASHES

    @property
    def guilty(self) -> bool:
        """Whether it must not run again: an engine crashed while it ran in isolation, or too many died."""
        return self.crashes > MOST_CRASHES or self.deaths > MOST_DEATHS

    def died(self, *, killed: bool) -> None:
        """Records the death of the engine that computed it; `killed`: by another program, so that no
        sequence is the cause."""
        self.deaths += 1
        self.clear_if_past()
        if killed:
            return
        if not self.crashes:
            self._cleared_at = len(self.tokens) + PROGRESS
        self.crashes += 1

    def fail_with_engine(self) -> None:
        """Ends it with an error, because engines died while they computed it."""
        log.error("request %s failed: %d engines died while it ran", self.request.id, self.deaths)
        self.stream.fail(EngineFailed("the engine was lost"))

    def clear_if_past(self) -> bool:
        """Clears the suspicion if it has passed the position where engines died; returns whether it has."""
        if len(self.tokens) <= self._cleared_at:
            return False
        self.crashes = 0
        return True

    def record(self, event: TokenEvent, now: float) -> TokenEvent:
        """Records an event that its engine sent, and returns it adjusted as if there were only one engine.

        Args:
          now: seconds, by the clock of `last_token`.
        """
        if not self.tokens and event.waited is not None:
            event = replace(event, waited=event.waited + self.began - self.submitted)
        self.started = True
        if event.token is not None:
            self.tokens.append(event.token)
            self.last_token = now
        if self.moves:
            device, pages = self.used_before
            event = replace(
                event,
                request_id=self.request.id,
                device_seconds=device + event.device_seconds,
                page_seconds=pages + event.page_seconds,
            )
        self.used = event.device_seconds, event.page_seconds
        return event

    def expire(self, moves: int, seconds: float) -> None:
        """Ends it with an error if it has waited for an engine since it was moved for the `moves`th time."""
        if self.moves == moves and self.engine is None and not self.stream.ended:
            reason = f"the engine was lost, and no other had room within {seconds:.0f} s"
            log.error("request %s failed: %s", self.request.id, reason)
            self.stream.fail(EngineFailed(reason))

    def continuation(self) -> Request:
        """The request for the next engine, under `wire_id`."""
        return replace(self.request, id=self.wire_id, generated=tuple(self.tokens))
