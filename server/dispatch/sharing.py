"""`Sharing`: on which engines the next sequence may start, and which running one makes way for it.

The slots are divided among the clients with sequences in progress, by their weights. There are shares within
each rank: of the slots that better ranks leave. Pages are scarcer than slots, so there may be a slot but no
pages for a sequence; then sequences that fit overtake it, but only for a limited time. Background sequences
have no share. Decides only; `dispatcher.py` starts and moves sequences.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ...runtime.request import Rank
from .engine_handle import EngineHandle
from .fair_queue import FairQueue
from .forecast import Forecast
from .tracked_sequence import TrackedSequence

PATIENCE = 1.0
"""For this many seconds the next sequence, if it lacks pages, is overtaken by those that fit. After that it
is sent to an engine, one to each, which schedules it before later sequences."""

_LAST_INTERACTIVE: Rank = (False, sys.maxsize)
"""To a sequence of this rank only background ones make way."""

MOST_RECOMPUTED = 2.0
"""A sequence is not moved to balance the engines if computing its tokens again could take more seconds."""


def balancing_move(
    handles: Sequence[EngineHandle], forecast: Forecast
) -> tuple[EngineHandle, TrackedSequence] | None:
    """A sequence that moves to an engine which has started, and that engine; None if there is none.

    It moves when the engine has compiled its steps, which takes longer beside sequences. This happens once
    after each start: engines that were even may become uneven again.
    """
    for handle in handles:
        if handle.fresh and handle.compiled:
            if sequence := _surplus(handle, handles, forecast):
                return handle, sequence
            handle.fresh = False
    return None


def _surplus(
    handle: EngineHandle, handles: Sequence[EngineHandle], forecast: Forecast
) -> TrackedSequence | None:
    """The youngest sequence of the engine with the most of them; None if none can be moved.

    A sequence with a grammar would wait until that is compiled again.
    """
    fullest = max(handles, key=lambda each: len(each.interactive))
    if len(handle.interactive) >= handle.slots or len(fullest.interactive) - len(handle.interactive) < 2:
        return None
    movable = [
        sequence
        for sequence in fullest.interactive
        if sequence.request.params.grammar is None
        and forecast.prompt_seconds(sequence.length) <= MOST_RECOMPUTED
        and handle.pages(sequence) <= handle.spare(_LAST_INTERACTIVE)
    ]
    return max(movable, key=lambda sequence: sequence.arrival, default=None)


def slots_for(handles: Iterable[EngineHandle], rank: Rank) -> int:
    """The slots that the running sequences of better ranks leave to a rank."""
    return sum(handle.slots - sum(each.rank < rank for each in handle.open.values()) for handle in handles)


class Sharing:
    """The rules of sharing for the queue of one rank."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def with_pages(
        self, sequence: TrackedSequence, rooms: Mapping[EngineHandle, float]
    ) -> list[EngineHandle]:
        """The engines that have the pages for a sequence, or that it is sent to without pages.

        Args:
          rooms: engines with a free slot, and their spare pages.
        """
        found = [handle for handle, spare in rooms.items() if handle.pages(sequence) <= spare]
        return found or self._without_pages(sequence, rooms)

    def victim(
        self,
        sequence: TrackedSequence,
        handles: Sequence[EngineHandle],
        queue: FairQueue[TrackedSequence],
    ) -> TrackedSequence | None:
        """The sequence to preempt for another one of its rank: the youngest of the client with the most slots
        for its weight, if that client is above its share and the other sequence's client below; None if there
        is none."""
        slots = slots_for(handles, sequence.rank)
        if queue.running(sequence.client) >= queue.share(sequence.client, slots):
            return None
        above = {name for name in queue.names if queue.running(name) > queue.share(name, slots)}
        running = {
            handle: [each for each in handle.open.values() if each.rank == sequence.rank]
            for handle in handles
        }
        lacking = {handle: handle.pages(sequence) - handle.spare(sequence.rank) for handle in handles}
        victims = _preemptible(above, running, lacking)
        if not victims:
            late = dict.fromkeys(self._without_pages(sequence, lacking), 0.0)
            victims = _preemptible(above, running, late)
        return max(victims, key=lambda other: (queue.occupation(other.client), other.arrival), default=None)

    def _without_pages(
        self, sequence: TrackedSequence, handles: Iterable[EngineHandle]
    ) -> list[EngineHandle]:
        """The engines that a sequence is sent to without pages, because it has waited too long for them."""
        if sequence.stuck_since is None:
            sequence.stuck_since = self._clock()
        long = self._clock() - sequence.stuck_since >= PATIENCE
        return [handle for handle in handles if handle.all_started(sequence.rank)] if long else []


def _preemptible(
    above: Collection[str],
    running: Mapping[EngineHandle, Sequence[TrackedSequence]],
    lacking: Mapping[EngineHandle, float],
) -> list[TrackedSequence]:
    """The running sequences of these clients, each with enough pages to cover what its engine lacks."""
    return [
        sequence
        for handle, pages in lacking.items()
        for sequence in running[handle]
        if sequence.client in above and handle.gain(sequence) >= pages
    ]
