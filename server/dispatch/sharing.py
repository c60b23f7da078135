"""`Sharing`: on which engines the next sequence may start, and which running one is preempted for it.

A client's share is the number of all slots, divided by the clients with sequences in progress. Pages are
scarcer than slots, so there may be a slot but no pages for a sequence; then sequences that fit overtake it,
but only for a limited time. Decides only; `dispatcher.py` starts and moves sequences.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .engine_handle import EngineHandle
from .fair_queue import FairQueue
from .run import Run

PATIENCE = 1.0
"""For this many seconds the next sequence, if it lacks pages, is overtaken by those that fit. After that it
is sent to an engine, one to each, which schedules it before later sequences."""


class Sharing:
    """The rules of sharing for one queue."""

    def __init__(self, queue: FairQueue[Run], clock: Callable[[], float]) -> None:
        self._queue, self._clock = queue, clock

    def with_pages(self, run: Run, rooms: Mapping[EngineHandle, float]) -> list[EngineHandle]:
        """The engines that have the pages for a sequence, or that it is sent to without pages.

        Args:
          rooms: engines with a free slot, and their spare pages.
        """
        found = [handle for handle, spare in rooms.items() if handle.pages(run) <= spare]
        return found or self._insists(run, rooms)

    def victim(self, run: Run, handles: Sequence[EngineHandle]) -> Run | None:
        """The sequence to preempt for another: the youngest of the client with the most slots, if that client
        is above its share and the other sequence's client below; None if there is none."""
        running = self._queue.running
        share = sum(handle.slots for handle in handles) // max(self._queue.clients, 1)
        mine = running(run.client)
        if mine >= share:
            return None
        most = max(share, mine + 1)
        lacking = {handle: handle.pages(run) - handle.spare for handle in handles}
        victims = self._dispensable(most, lacking)
        victims = victims or self._dispensable(most, dict.fromkeys(self._insists(run, lacking), 0.0))
        return max(victims, key=lambda other: (running(other.client), other.arrival), default=None)

    def _insists(self, run: Run, handles: Iterable[EngineHandle]) -> list[EngineHandle]:
        """The engines that a sequence is sent to without pages, because it has waited too long for them."""
        if run.stuck_since is None:
            run.stuck_since = self._clock()
        long = self._clock() - run.stuck_since >= PATIENCE
        return [handle for handle in handles if handle.all_started] if long else []

    def _dispensable(self, most: int, lacking: Mapping[EngineHandle, float]) -> list[Run]:
        """The sequences of clients that run more than `most`, each with enough pages to cover what its engine
        lacks."""
        return [
            run
            for handle, pages in lacking.items()
            for run in handle.open.values()
            if self._queue.running(run.client) > most and handle.gain(run) >= pages
        ]
