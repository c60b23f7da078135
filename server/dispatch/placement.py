"""`Placement`: which waiting sequence begins next and on which engine, or in the place of which running one.

The next sequence is one of the best rank that waits: while it lacks a slot or pages, nothing of a worse rank
begins. If all that could be next only wait for a busy engine with their prefix, the next rank is tried: its
sequences then make way for them later.

Only decides; `dispatcher.py` starts and moves sequences, `sharing.py` has the rules of shares, `affinity.py`
those of cached prefixes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from ...runtime.request import Rank
from .affinity import Affinity
from .engine_handle import EngineHandle
from .fair_queue import FairQueue
from .priority_queues import PriorityQueues
from .sharing import Sharing
from .tracked_sequence import TrackedSequence

MOST_HELD = 32
"""The most sequences of a client that are overtaken while they wait for the engine with their prefix."""


class Placement:
    """The decisions for the waiting sequences of all engines."""

    def __init__(self, queues: PriorityQueues, affinity: Affinity, clock: Callable[[], float]) -> None:
        self._queues, self._affinity = queues, affinity
        self._sharing = Sharing(clock)

    def next(
        self, shared: Sequence[EngineHandle], *, background: bool
    ) -> tuple[TrackedSequence, EngineHandle] | None:
        """The next sequence that an engine has room for, and the engine; None if there is none.

        Args:
          shared: the engines that accept sequences.
          background: only a background sequence; else only an interactive one.
        """
        for rank, queue in self._in_turn():
            rooms = {handle: handle.spare(rank) for handle in shared if handle.has_slot(rank)}
            if not rooms:
                return None
            if rank[0] != background:
                continue
            next_one = self._next_background(queue, rooms) if background else self._next(queue, rooms, shared)
            if next_one is not None:
                return next_one
        return None

    def exchange(self, shared: Sequence[EngineHandle]) -> tuple[TrackedSequence, TrackedSequence] | None:
        """A waiting sequence of a client below its share, and the running one of a client above its share
        that is preempted for it; None if there are none."""
        for rank, queue in self._in_turn():
            if rank[0]:
                return None
            if queue.clients > 1 and (found := self._exchange(queue, shared)):
                return found
        return None

    def _in_turn(self) -> Iterator[tuple[Rank, FairQueue[TrackedSequence]]]:
        """The queues, best rank first, until one whose sequences do not only wait for one engine."""
        for rank, queue in self._queues.by_rank():
            yield rank, queue
            if not all(map(self._affinity.holds, self._candidates(queue))):
                return

    def _exchange(
        self, queue: FairQueue[TrackedSequence], shared: Sequence[EngineHandle]
    ) -> tuple[TrackedSequence, TrackedSequence] | None:
        for waiting in queue.queues():
            sequence = waiting[0]
            if not self._affinity.holds(sequence):
                victim = self._sharing.victim(sequence, shared, queue)
                if victim is not None:
                    return sequence, victim
        return None

    def _next(
        self,
        queue: FairQueue[TrackedSequence],
        rooms: dict[EngineHandle, float],
        shared: Sequence[EngineHandle],
    ) -> tuple[TrackedSequence, EngineHandle] | None:
        for sequence in self._candidates(queue):
            fitting = self._sharing.with_pages(sequence, rooms)
            handle = self._affinity.choose(sequence, fitting, shared)
            if handle is not None:
                return sequence, handle
        return None

    def _candidates(self, queue: FairQueue[TrackedSequence]) -> Iterator[TrackedSequence]:
        """The first sequence of each client, and further ones behind those that wait for one engine."""
        for waiting in queue.queues():
            for sequence in islice(waiting, MOST_HELD):
                yield sequence
                if not self._affinity.holds(sequence):
                    break

    def _next_background(
        self, queue: FairQueue[TrackedSequence], rooms: dict[EngineHandle, float]
    ) -> tuple[TrackedSequence, EngineHandle] | None:
        """The first one alone, where its pages are free: it has time, and no claim to an engine."""
        sequence = queue.queues()[0][0]
        fitting = [handle for handle, spare in rooms.items() if handle.pages(sequence) <= spare]
        handle = self._affinity.choose(sequence, fitting, fitting)
        return None if handle is None else (sequence, handle)
