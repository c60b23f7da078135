"""`Place`: one engine as the dispatcher sees it, with the sequences that it computes and the room left.

Knows slots and pages; decides nothing. An engine is given no more sequences than it has slots, so that what
waits can still go elsewhere, and none whose prompt does not fit beside what it has.
"""

import math
from collections.abc import Iterable
from typing import Protocol

from ...runtime.request import EngineStats, Request
from ..engine_client import EngineInfo, EngineState
from .forecast import Forecast, Steps
from .run import Run


class Computes(Protocol):
    """What is asked of an engine here; `supervisor.EngineProcess` has it."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo | None: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def ready_in(self) -> float: ...

    def send(self, request: Request) -> None:
        """Gives it a sequence; dropped if it is gone."""
        ...

    def abort(self, request_id: str) -> None:
        """Takes one from it; dropped if it is gone."""
        ...


class Place:
    """One engine.

    Attributes:
      number: the replica's. open: the sequences that it computes, by their ids on the wire.
    """

    def __init__(self, number: int, engine: Computes) -> None:
        self.number = number
        self.open: dict[str, Run] = {}
        self._engine = engine

    @property
    def takes(self) -> bool:
        """Whether it takes sequences."""
        return self._engine.state == "ready"

    @property
    def takes_in(self) -> float:
        """Seconds until it takes sequences; infinite unless it did once, and does or restarts."""
        if self.takes:
            return 0.0
        restarts = self._engine.state == "restarting" and self._engine.info
        return self._engine.ready_in if restarts else math.inf

    @property
    def slots(self) -> int:
        """How many it computes together."""
        return self._engine.info.slots if self._engine.info else 0

    @property
    def has_slot(self) -> bool:
        """Whether it takes one more."""
        return self.takes and len(self.open) < self.slots

    @property
    def load(self) -> float:
        """The part of its slots that is in use."""
        return len(self.open) / max(self.slots, 1)

    @property
    def settled(self) -> bool:
        """Whether a token has come of all that it computes: none of them waits for pages."""
        return all(run.started for run in self.open.values())

    @property
    def spare(self) -> float:
        """Pages for a further sequence: those that are free, but for what was sent and has not begun, and one
        for each sequence that grows beside it."""
        stats, info = self._engine.stats, self._engine.info
        if info is None or not info.pages or not self.open:
            return math.inf
        free = stats.free_pages if stats.total_pages else info.pages  # nothing was heard of it yet
        return free - sum(self.pages(run) for run in self.open.values() if not run.started) - len(self.open)

    @property
    def steps(self) -> Steps | None:
        """How long its steps take; None where that is not known."""
        stats = self._engine.stats
        if not self.takes or not stats.decode_seconds:
            return None
        return Steps(decode=stats.decode_seconds, prompt=stats.prompt_seconds)

    def gain(self, run: Run) -> float:
        """By how much `spare` grows if a sequence leaves."""
        return self.pages(run) + 1 if len(self.open) > 1 else math.inf

    def pages(self, run: Run) -> int:
        """Pages for a sequence and its next token; 0 where pages are not counted."""
        info = self._engine.info
        return run.length // info.page_size + 1 if info and info.pages else 0

    def begin(self, run: Run, now: float) -> None:
        """Gives a sequence to the engine."""
        run.engine, run.began, run.started = self.number, now, False
        run.held_until = run.held_for = run.stuck_since = None
        run.wire_id = f"{run.request.id}~{run.moves}" if run.moves else run.request.id
        self.open[run.wire_id] = run
        self._engine.send(run.continuation())

    def leave(self, run: Run, *, working: bool) -> None:
        """The sequence is no longer the engine's; if that still works on it, it is told to leave off."""
        del self.open[run.wire_id]
        run.engine = None
        if working:
            self._engine.abort(run.wire_id)


def all_left(places: Iterable[Place], forecast: Forecast, client: str | None = None) -> list[float]:
    """What the sequences of several engines, or those of one client, will still take of their slots."""
    runs = (run for place in places if place.takes for run in place.open.values())
    return [
        forecast.left(run.request, len(run.tokens), started=run.started)
        for run in runs
        if client is None or run.client == client
    ]
