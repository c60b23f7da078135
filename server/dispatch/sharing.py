"""`Sharing`: where a sequence whose turn it is may begin, and who makes way for it.

A share is of slots: all of them, divided by the clients that have something under way. Pages are in short
supply more often than slots, so a sequence may have a slot and lack pages; it is overtaken then by those that
fit, though not for ever. Decides only; who moves and begins what is `dispatcher.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .fair_queue import FairQueue
from .places import Place
from .run import Run

PATIENCE = 1.0
"""For so many seconds a sequence whose turn it is and that lacks pages is overtaken by those that fit. After
that it is sent to an engine, one to each, which seats it before whatever comes later."""


class Sharing:
    """The rules, over one queue."""

    def __init__(self, queue: FairQueue[Run], clock: Callable[[], float]) -> None:
        self._queue, self._clock = queue, clock

    def with_pages(self, run: Run, rooms: Mapping[Place, float]) -> list[Place]:
        """The engines that have the pages for a sequence, or that it is sent to without.

        Args:
          rooms: engines that have a slot, and their spare pages.
        """
        found = [place for place, spare in rooms.items() if place.pages(run) <= spare]
        return found or self._insists(run, rooms)

    def victim(self, run: Run, places: Sequence[Place]) -> Run | None:
        """Who makes way for a sequence: the youngest of the client that has most, if that has more than its
        share while the sequence's own has less; None if nobody does."""
        running = self._queue.running
        share = sum(place.slots for place in places) // max(self._queue.clients, 1)
        mine = running(run.client)
        if mine >= share:
            return None
        most = max(share, mine + 1)
        lacking = {place: place.pages(run) - place.spare for place in places}
        victims = self._dispensable(most, lacking)
        victims = victims or self._dispensable(most, dict.fromkeys(self._insists(run, lacking), 0.0))
        return max(victims, key=lambda other: (running(other.client), other.arrival), default=None)

    def _insists(self, run: Run, places: Iterable[Place]) -> list[Place]:
        """The engines that a sequence is sent to though they lack pages, having lacked them for too long."""
        if run.stuck_since is None:
            run.stuck_since = self._clock()
        long = self._clock() - run.stuck_since >= PATIENCE
        return [place for place in places if place.settled] if long else []

    def _dispensable(self, most: int, lacking: Mapping[Place, float]) -> list[Run]:
        """The sequences of clients that run more than `most`, each of which holds the pages that its engine
        lacks."""
        return [
            run
            for place, pages in lacking.items()
            for run in place.open.values()
            if self._queue.running(run.client) > most and place.gain(run) >= pages
        ]
