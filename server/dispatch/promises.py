"""`Promises`: when refused requests were told to return, by rank.

Refused requests count as if they returned at that time, at the rate observed so far, so that each gets a time
behind those of others; how many are expected back says how much room to keep for them. Those of worse ranks
do not exist for a rank, neither what they were promised nor how many of them return.

Refuses nothing itself: `admission.py` decides.
"""

from collections import OrderedDict

from ...runtime.request import Rank, Request

LONGEST_RETRY = 60.0

_EARLY, _LATE = 1.0, 15.0
"""The tolerance, in seconds, around a retry time."""
_MOST_PROMISES = 10_000
_MOST_RANKS = 64
"""The most ranks that are remembered: if there are more, those without promises go first, then the worst."""
_NEWS, _FEWEST = 0.02, 0.05
"""The weight of the newest promise in the fraction of requests that return, and its lower bound."""

_Name = tuple[str, int]


class _RankPromises:
    """The promises of one rank.

    Attributes:
      due: the time promised to each refused request, oldest first. room_at: when there is room behind them.
      returning: the fraction of refused requests that return at their retry time.
    """

    def __init__(self) -> None:
        self.due: OrderedDict[_Name, float] = OrderedDict()
        self.room_at = 0.0
        self.returning = 1.0

    @property
    def expected(self) -> float:
        """The number of requests that are expected back."""
        return len(self.due) * self.returning

    def forget_late(self, now: float) -> None:
        while self.due and next(iter(self.due.values())) + _LATE < now:
            self.due.popitem(last=False)
            self._learn(returned=False)

    def came_back(self, name: _Name, now: float) -> bool:
        due = self.due.get(name)
        if due is None or now < due - _EARLY:
            return False
        del self.due[name]
        self._learn(returned=True)
        return True

    def _learn(self, *, returned: bool) -> None:
        self.returning = max(_FEWEST, self.returning + _NEWS * (returned - self.returning))


class Promises:
    """What refused requests of all ranks were promised. Times are in seconds and never go back."""

    def __init__(self) -> None:
        self._ranks: dict[Rank, _RankPromises] = {}

    def came_back(self, request: Request, now: float) -> bool:
        """Whether a request was refused before and returns at its retry time. True once for each refusal."""
        for promises in self._ranks.values():
            promises.forget_late(now)
        own = self._ranks.get(request.rank)
        return own is not None and own.came_back(_name(request), now)

    def expected(self, rank: Rank) -> float:
        """The number of refused requests of a rank and better ones that are expected back."""
        return sum(promises.expected for promises in self._up_to(rank))

    def make(self, request: Request, due: float) -> None:
        """Records that a request was told to return at a time, after `retry`."""
        if (own := self._ranks.get(request.rank)) is not None:
            own.due.setdefault(_name(request), due)
        if sum(len(promises.due) for promises in self._ranks.values()) > _MOST_PROMISES:
            worst = max(rank for rank, promises in self._ranks.items() if promises.due)
            self._ranks[worst].due.popitem(last=False)

    def retry(self, rank: Rank, soonest: float, pace: float, now: float) -> float:
        """Seconds until there is room for a refused request, behind what was promised up to its rank.

        Args:
          soonest: seconds until there is room for the first. pace: seconds between two that return.
        """
        own = self._of(rank, now)
        own.room_at = max(now + soonest, own.room_at, *(each.room_at for each in self._up_to(rank)))
        seconds = own.room_at - now
        if seconds < LONGEST_RETRY:
            own.room_at += pace * own.returning
        return min(seconds, LONGEST_RETRY)

    def _up_to(self, rank: Rank) -> list[_RankPromises]:
        return [promises for other, promises in self._ranks.items() if other <= rank]

    def _of(self, rank: Rank, now: float) -> _RankPromises:
        """The promises of a rank; they are not remembered if too many better ranks have some."""
        if rank not in self._ranks and len(self._ranks) >= _MOST_RANKS:
            idle = [other for other, each in self._ranks.items() if not each.due and each.room_at <= now]
            worst = max(idle or self._ranks)
            if not idle and worst < rank:
                return _RankPromises()
            del self._ranks[worst]
        return self._ranks.setdefault(rank, _RankPromises())


def _name(request: Request) -> _Name:
    """The part of a request that is equal when it is sent again."""
    return request.client, hash(request.prompt)
