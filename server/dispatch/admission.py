"""What may enter: whatever will have its first token soon enough, and fits into memory.

The bound that matters is the predicted wait; a refused request is told when there will be room. It is assumed
that refused requests return at that time as often as earlier ones did, so each of them is told a different
time. A part of the queue is reserved for those that do return then with the same prompt, a larger one if more
of them are expected; so the time stays true while other clients keep asking. Prompts that wait are also
bounded by the memory they take, and an operator may bound all that is under way.
"""

from collections import OrderedDict
from collections.abc import Sequence

from ...runtime.request import InvalidRequest, Overloaded, Request
from ..engine_client import EngineClient, EngineInfo
from .line import Line

MOST_TOKENS = 4_000_000
"""Tokens of prompts that wait, some 150 MB of memory."""

_BACK, _NEW, _LEAST_NEW = 0.75, 0.65, 0.35
"""The part of the longest wait up to which requests are taken: those that come back when they were told to;
new ones while nobody was told so, and while many were. Predictions are wrong by some of the rest."""
_LONGEST_RETRY = 60.0
_EARLY, _LATE = 1.0, 15.0
"""By how many seconds who comes back may miss the time."""
_MOST_PROMISES = 10_000
_NEWS, _FEWEST = 0.02, 0.05
"""The weight of the newest promise in the part of those who come back, and the least that is counted on."""
_REQUESTS_PER_SLOT = 8


def most_together(wanted: int | None, engine: EngineClient) -> int:
    """The most sequences of one call: an operator's bound on all, or 8 for each slot that may serve."""
    return wanted or _REQUESTS_PER_SLOT * sum(info.slots for info in _hoped_for(engine))


def check_possible(requests: Sequence[Request], wanted: int | None, engine: EngineClient, param: str) -> None:
    """Refuses the sequences of a call that could not enter together even if nobody else were there.

    Args:
      wanted: the operator's bound on what is under way. param: the parameter that asks for so many.

    Raises:
      InvalidRequest: they are too many, or their prompts are too long together.
    """
    count, most = len(requests), most_together(wanted, engine)
    if count > most:
        raise InvalidRequest(
            f"This request asks for {count} sequences at once (prompts x choices); this server takes at most "
            f"{most}. Please send several requests.",
            param,
        )
    tokens = _tokens(requests)
    if tokens > MOST_TOKENS:
        raise InvalidRequest(
            f"This request has {tokens} prompt tokens in all its sequences (prompts x choices); this server "
            f"takes at most {MOST_TOKENS} at once. Please send several requests.",
            param,
        )


def _hoped_for(engine: EngineClient) -> list[EngineInfo]:
    """The engines that serve, or will again."""
    return [each.info for each in engine.replicas if each.info and each.state != "stopped"]


class Admission:
    """Who may enter, and when those who may not shall come back."""

    def __init__(self, most_under_way: int | None = None, max_wait: float = 30.0) -> None:
        """Nobody has been refused.

        Args:
          most_under_way: the operator's bound on sequences that wait or run; None for no such bound.
          max_wait: the longest wait for a first token, in seconds.
        """
        self._most_under_way = most_under_way
        self._max_wait = max_wait
        self._room_at = 0.0
        self._promises: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._returning = 1.0

    def check(self, requests: Sequence[Request], line: Line, now: float) -> None:
        """Lets the sequences of a call enter.

        Args:
          line: what the first of them has before it. now: seconds.

        Raises:
          Overloaded: they would wait too long, are too many, or their prompts do not fit beside what waits.
        """
        most = self._most_under_way
        if most is not None and line.under_way + len(requests) > most:
            raise Overloaded(
                f"{line.under_way} requests are under way; the most is {most}",
                self._retry(max(line.wait, line.end), line, now),
            )
        came_back = self._came_back(requests[0], now)
        longest = self._max_wait * _BACK if came_back else self._longest_of_new(line)
        if line.wait > longest:
            seconds = self._retry(line.wait - self._max_wait * _NEW, line, now)
            self._promise(requests[0], now + seconds)
            raise Overloaded(f"the wait would be {line.wait:.1f} s; the longest is {longest:.1f} s", seconds)
        came, fair = _tokens(requests), MOST_TOKENS / max(line.clients, 1)
        if line.tokens + came > MOST_TOKENS and line.own_tokens + came > fair:
            raise Overloaded(
                f"{line.tokens} prompt tokens wait and {came} more came; the most is {MOST_TOKENS}",
                self._retry(line.wait, line, now),
            )

    def _came_back(self, request: Request, now: float) -> bool:
        """Whether a request was refused before, and comes back when it was told to. Asked once."""
        while self._promises and next(iter(self._promises.values())) + _LATE < now:
            self._promises.popitem(last=False)
            self._learn(returned=False)
        due = self._promises.get(_name(request))
        if due is None or now < due - _EARLY:
            return False
        del self._promises[_name(request)]
        self._learn(returned=True)
        return True

    def _learn(self, *, returned: bool) -> None:
        """One who was told when to come back did, or did not."""
        self._returning = max(_FEWEST, self._returning + _NEWS * (returned - self._returning))

    def _longest_of_new(self, line: Line) -> float:
        """The longest wait of those who were promised nothing: what was promised to others comes first."""
        promised = len(self._promises) * line.pace * self._returning
        return max(self._max_wait * _LEAST_NEW, self._max_wait * _NEW - promised)

    def _promise(self, request: Request, due: float) -> None:
        self._promises.setdefault(_name(request), due)
        if len(self._promises) > _MOST_PROMISES:
            self._promises.popitem(last=False)

    def _retry(self, soonest: float, line: Line, now: float) -> float:
        """Seconds until there is room, behind those who were told so before."""
        self._room_at = max(self._room_at, now + soonest)
        seconds = self._room_at - now
        if seconds < _LONGEST_RETRY:
            self._room_at += line.pace * self._returning
        return min(seconds, _LONGEST_RETRY)


def _name(request: Request) -> tuple[str, int]:
    """What is the same of a request that is sent again."""
    return request.client, hash(request.prompt)


def _tokens(requests: Sequence[Request]) -> int:
    return sum(len(request.prompt) for request in requests)
