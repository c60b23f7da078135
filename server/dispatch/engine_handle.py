"""`EngineHandle`: one engine as the dispatcher sees it, its running sequences, free slots and pages.

Counts slots and pages; decides nothing. An engine receives no more sequences than it has slots, so that
waiting ones can still go elsewhere, and no sequence whose prompt does not fit into its free pages. Sequences
of a worse rank do not count against a sequence, because they make way for it.
"""

import math
from collections.abc import Iterable
from typing import Protocol

from ...runtime.request import EngineStats, Rank, Request
from ..engine_client import EngineInfo, EngineState
from .forecast import Forecast, Steps
from .tracked_sequence import TrackedSequence


class EngineConnection(Protocol):
    """The interface of an engine that the dispatcher needs; `supervisor.EngineSupervisor` implements it."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo | None: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def ready_in(self) -> float: ...

    def send(self, request: Request) -> None:
        """Sends it a sequence; dropped if the engine is gone."""
        ...

    def abort(self, request_id: str) -> None:
        """Aborts a sequence; dropped if the engine is gone."""
        ...


class EngineHandle:
    """One engine.

    Attributes:
      number: the replica's number. open: the sequences that it computes, by their ids on the wire.
      fresh: it has started, and has not yet received its part of what others compute.
    """

    def __init__(self, number: int, engine: EngineConnection) -> None:
        self.number = number
        self.open: dict[str, TrackedSequence] = {}
        self.fresh = False
        self._engine = engine

    @property
    def takes(self) -> bool:
        """Whether it accepts sequences."""
        return self._engine.state == "ready"

    @property
    def takes_in(self) -> float:
        """Seconds until it accepts sequences: 0 if it does, infinite unless it did and is restarting."""
        if self.takes:
            return 0.0
        restarts = self._engine.state == "restarting" and self._engine.info
        return self._engine.ready_in if restarts else math.inf

    @property
    def slots(self) -> int:
        """The number of sequences that it computes together."""
        return self._engine.info.slots if self._engine.info else 0

    @property
    def interactive(self) -> list[TrackedSequence]:
        """Its sequences that are not background."""
        return [sequence for sequence in self.open.values() if not sequence.background]

    def up_to(self, rank: Rank) -> list[TrackedSequence]:
        """Its sequences of this rank and better ones: those that do not make way for a sequence of it."""
        return [sequence for sequence in self.open.values() if sequence.rank <= rank]

    def has_slot(self, rank: Rank) -> bool:
        """Whether it accepts one more sequence of a rank; one of a worse rank makes way for it if needed."""
        return self.takes and len(self.up_to(rank)) < self.slots

    @property
    def compiled(self) -> bool:
        """Whether it has compiled all its steps."""
        return self._engine.stats.buckets_ready >= self._engine.stats.buckets

    def load(self, rank: Rank) -> float:
        """The fraction of its slots that are in use, as a sequence of a rank sees it."""
        return len(self.up_to(rank)) / max(self.slots, 1)

    @property
    def generating(self) -> int:
        """The number of its sequences that have produced a token."""
        return sum(sequence.started for sequence in self.open.values())

    def all_started(self, rank: Rank) -> bool:
        """Whether all its sequences up to a rank have produced a token, so that none waits for pages."""
        return all(sequence.started for sequence in self.up_to(rank))

    def spare(self, rank: Rank) -> float:
        """Pages for a further sequence of a rank: the idle ones and those of worse ranks."""
        if not self.up_to(rank):
            return math.inf
        worse = (sequence for sequence in self.open.values() if sequence.rank > rank)
        return self.idle_pages + sum(self.pages(sequence) + 1 for sequence in worse)

    @property
    def idle_pages(self) -> float:
        """Pages for a further sequence: the free ones, less those of sequences that were sent and have not
        started, and less one for each running sequence."""
        stats, info = self._engine.stats, self._engine.info
        if info is None or not info.pages or not self.open:
            return math.inf
        free = stats.free_pages if stats.total_pages else info.pages  # no heartbeat has arrived yet
        return (
            free
            - sum(self.pages(sequence) for sequence in self.open.values() if not sequence.started)
            - len(self.open)
        )

    @property
    def steps(self) -> Steps | None:
        """How long its steps take; None if that is unknown."""
        stats = self._engine.stats
        if not self.takes or not stats.decode_seconds:
            return None
        return Steps(decode=stats.decode_seconds, prompt=stats.prompt_seconds)

    def gain(self, sequence: TrackedSequence) -> float:
        """The increase of its spare pages if a sequence is removed."""
        return self.pages(sequence) + 1 if len(self.open) > 1 else math.inf

    def pages(self, sequence: TrackedSequence) -> int:
        """Pages for a sequence and its next token; 0 if pages are not counted."""
        info = self._engine.info
        return sequence.length // info.page_size + 1 if info and info.pages else 0

    def in_the_way(self, sequence: TrackedSequence) -> list[TrackedSequence]:
        """The sequences of worse ranks that must leave before one begins: the worst ones, of these the
        youngest, as many as hold the slot and the pages that it lacks."""
        lacking, full = self.pages(sequence) - self.idle_pages, len(self.open) >= self.slots
        found: list[TrackedSequence] = []
        worse = [other for other in self.open.values() if other.rank > sequence.rank]
        for other in sorted(worse, key=lambda each: (each.rank, each.arrival), reverse=True):
            if not full and lacking <= 0:
                break
            found.append(other)
            full, lacking = False, lacking - self.pages(other) - 1
        return found

    def begin(self, sequence: TrackedSequence, now: float) -> None:
        """Sends a sequence to the engine."""
        sequence.engine, sequence.began, sequence.started = self.number, now, False
        sequence.used_before = sequence.used
        sequence.held_until = sequence.held_for = sequence.stuck_since = None
        sequence.wire_id = (
            f"{sequence.request.id}~{sequence.moves}" if sequence.moves else sequence.request.id
        )
        self.open[sequence.wire_id] = sequence
        self._engine.send(sequence.continuation())

    def leave(self, sequence: TrackedSequence, *, working: bool) -> None:
        """Removes a sequence; aborts it if the engine still works on it."""
        del self.open[sequence.wire_id]
        sequence.engine = None
        if working:
            self._engine.abort(sequence.wire_id)


def all_left(
    handles: Iterable[EngineHandle], forecast: Forecast, rank: Rank, client: str | None = None
) -> list[float]:
    """The remaining slot seconds of engines' sequences up to a rank, of all clients or of one."""
    sequences = (sequence for handle in handles if handle.takes for sequence in handle.up_to(rank))
    return [
        forecast.left(sequence.request, len(sequence.tokens), started=sequence.started)
        for sequence in sequences
        if client is None or sequence.client == client
    ]
