"""`Sharing`: on which engines the next sequence may start, and which running one makes way for it.

A client's share is the number of all slots, divided by the clients with sequences in progress. Pages are
scarcer than slots, so there may be a slot but no pages for a sequence; then sequences that fit overtake it,
but only for a limited time. Background sequences have no share. Decides only; `dispatcher.py` starts and
moves sequences.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .engine_handle import EngineHandle
from .fair_queue import FairQueue
from .forecast import Forecast
from .tracked_sequence import TrackedSequence

PATIENCE = 1.0
"""For this many seconds the next sequence, if it lacks pages, is overtaken by those that fit. After that it
is sent to an engine, one to each, which schedules it before later sequences."""

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
    if not handle.has_slot or len(fullest.interactive) - len(handle.interactive) < 2:
        return None
    movable = [
        sequence
        for sequence in fullest.interactive
        if sequence.request.params.grammar is None
        and forecast.prompt_seconds(sequence.length) <= MOST_RECOMPUTED
        and handle.pages(sequence) <= handle.spare
    ]
    return max(movable, key=lambda sequence: sequence.arrival, default=None)


class Sharing:
    """The rules of sharing for one queue."""

    def __init__(self, queue: FairQueue[TrackedSequence], clock: Callable[[], float]) -> None:
        self._queue, self._clock = queue, clock

    def with_pages(
        self, sequence: TrackedSequence, rooms: Mapping[EngineHandle, float]
    ) -> list[EngineHandle]:
        """The engines that have the pages for a sequence, or that it is sent to without pages.

        Args:
          rooms: engines with a free slot, and their spare pages.
        """
        found = [handle for handle, spare in rooms.items() if handle.pages(sequence) <= spare]
        return found or self._without_pages(sequence, rooms)

    def victim(self, sequence: TrackedSequence, handles: Sequence[EngineHandle]) -> TrackedSequence | None:
        """The sequence to preempt for another: the youngest of the client with the most slots, if that client
        is above its share and the other sequence's client below; None if there is none."""
        running = self._queue.running
        share = sum(handle.slots for handle in handles) // max(self._queue.clients, 1)
        mine = running(sequence.client)
        if mine >= share:
            return None
        most = max(share, mine + 1)
        lacking = {handle: handle.pages(sequence) - handle.spare for handle in handles}
        victims = self._preemptible(most, lacking)
        victims = victims or self._preemptible(
            most, dict.fromkeys(self._without_pages(sequence, lacking), 0.0)
        )
        return max(victims, key=lambda other: (running(other.client), other.arrival), default=None)

    def _without_pages(
        self, sequence: TrackedSequence, handles: Iterable[EngineHandle]
    ) -> list[EngineHandle]:
        """The engines that a sequence is sent to without pages, because it has waited too long for them."""
        if sequence.stuck_since is None:
            sequence.stuck_since = self._clock()
        long = self._clock() - sequence.stuck_since >= PATIENCE
        return [handle for handle in handles if handle.all_started] if long else []

    def _preemptible(self, most: int, lacking: Mapping[EngineHandle, float]) -> list[TrackedSequence]:
        """The sequences of clients that run more than `most`, each with enough pages to cover what its engine
        lacks."""
        return [
            sequence
            for handle, pages in lacking.items()
            for sequence in handle.interactive
            if self._queue.running(sequence.client) > most and handle.gain(sequence) >= pages
        ]
