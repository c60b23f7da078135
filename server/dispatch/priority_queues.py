"""`PriorityQueues`: the waiting sequences by rank, with a fair queue for each rank.

A rank is `Request.rank`: interactive before background, and within these a lower `priority` first. The order
between ranks is strict, and to a sequence those of worse ranks do not exist. Background sequences are only
the last ranks. Within a rank `fair_queue.py` decides.
"""

from collections.abc import Iterator
from heapq import heapify, heappop

from ...runtime.request import Rank
from .fair_queue import FairQueue
from .tracked_sequence import TrackedSequence


class PriorityQueues:
    """A fair queue for each rank that has waiting or running sequences."""

    def __init__(self) -> None:
        self._queues: dict[Rank, FairQueue[TrackedSequence]] = {}

    def __iter__(self) -> Iterator[TrackedSequence]:
        for queue in self._queues.values():
            yield from queue

    def by_rank(self) -> Iterator[tuple[Rank, FairQueue[TrackedSequence]]]:
        """The queues with waiting sequences, best rank first."""
        ranks = [rank for rank, queue in self._queues.items() if queue]
        heapify(ranks)  # the first one usually decides
        while ranks:
            rank = heappop(ranks)
            yield rank, self._queues[rank]

    def of(self, rank: Rank) -> FairQueue[TrackedSequence]:
        """The queue of a rank; an empty one, which is not kept, if it has no sequences."""
        found = self._queues.get(rank)
        return FairQueue() if found is None else found

    def waiting(self, *, background: bool) -> int:
        """The number of waiting sequences."""
        return sum(len(queue) for queue in self._of_kind(background))

    def tokens(self, *, background: bool) -> int:
        """The tokens of waiting sequences."""
        return sum(queue.tokens for queue in self._of_kind(background))

    def up_to(self, rank: Rank) -> list[FairQueue[TrackedSequence]]:
        """The queues of a rank and of better ones."""
        return [queue for other, queue in self._queues.items() if other <= rank]

    def cost_ahead_of(self, rank: Rank) -> float:
        """The cost of the waiting sequences of better ranks."""
        return sum(queue.cost for other, queue in self._queues.items() if other < rank)

    def push(self, sequence: TrackedSequence) -> None:
        """Adds a waiting sequence."""
        self._queues.setdefault(sequence.rank, FairQueue()).push(sequence)

    def remove(self, sequence: TrackedSequence) -> None:
        """Removes a waiting sequence that is not served."""
        self._queues[sequence.rank].remove(sequence)
        self._drop_unused(sequence.rank)

    def take(self, sequence: TrackedSequence) -> None:
        """Removes a waiting sequence that is served from now until `give_back`."""
        self._queues[sequence.rank].take(sequence)

    def give_back(self, sequence: TrackedSequence) -> None:
        """Records that a sequence is no longer served."""
        self._queues[sequence.rank].give_back(sequence.client)
        self._drop_unused(sequence.rank)

    def _of_kind(self, background: bool) -> list[FairQueue[TrackedSequence]]:
        return [queue for (kind, _), queue in self._queues.items() if kind == background]

    def _drop_unused(self, rank: Rank) -> None:
        if not self._queues[rank].clients:
            del self._queues[rank]
