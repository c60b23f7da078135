"""Admission control: accepts requests that will have their first token soon enough and that fit into memory.

The main bound is the predicted wait; a refusal carries the time at which there will be room. For refused
requests that return then, with the same prompt, part of the queue is reserved; its size grows with the number
of refused requests (`promises.py`). So the time in a refusal holds even under constant load. The memory of
waiting prompts is bounded as well, and an operator may bound the number of requests in progress.

All of this counts only sequences of the request's rank and better ones, except one bound: the memory of all
waiting prompts.
"""

from collections.abc import Sequence

from ...runtime.request import InvalidRequest, Overloaded, Request
from ..engine_client import EngineClient, EngineInfo
from .promises import LONGEST_RETRY, Promises
from .queue_ahead import QueueAhead

MOST_TOKENS = 4_000_000
"""The most tokens of waiting prompts up to a rank, some 150 MB of memory."""
MOST_OF_ALL = 2 * MOST_TOKENS
"""The same for all ranks together: there may be any number of them."""

_BACK, _NEW, _LEAST_NEW = 0.75, 0.65, 0.35
"""The fraction of the longest wait up to which requests are accepted: those that return at their retry time;
new ones while no retry time is promised, and while many are. The rest covers errors of the prediction."""
_REQUESTS_PER_SLOT = 8


def most_together(wanted: int | None, engine: EngineClient) -> int:
    """The most sequences of one call: the operator's bound on all, or 8 for each slot."""
    return wanted or _REQUESTS_PER_SLOT * sum(info.slots for info in _serving_or_restarting(engine))


def check_possible(requests: Sequence[Request], wanted: int | None, engine: EngineClient, param: str) -> None:
    """Refuses a call whose sequences could not be accepted together even by an idle server.

    Args:
      wanted: the operator's bound on requests in progress. param: the parameter that requests so many.

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


def _serving_or_restarting(engine: EngineClient) -> list[EngineInfo]:
    """The engines that serve, or will serve again."""
    return [each.info for each in engine.replicas if each.info and each.state != "stopped"]


class Admission:
    """Decides which requests to accept, and when refused ones should be retried."""

    def __init__(self, most_under_way: int | None = None, max_wait: float = 30.0) -> None:
        """Starts without refusals.

        Args:
          most_under_way: the operator's bound on waiting and running sequences; None for no bound.
          max_wait: the longest wait for a first token, in seconds.
        """
        self._most_under_way = most_under_way
        self._max_wait = max_wait
        self._promises = Promises()

    def check(self, requests: Sequence[Request], ahead: QueueAhead, now: float) -> None:
        """Accepts the sequences of a call.

        Args:
          ahead: the queue in front of the first of them. now: seconds.

        Raises:
          Overloaded: they would wait too long, are too many, or their prompts do not fit into the queue.
        """
        first, most = requests[0], self._most_under_way
        if most is not None and ahead.under_way + len(requests) > most:
            raise Overloaded(
                f"{ahead.under_way} requests are in progress; the most is {most}",
                self._retry(first, max(ahead.wait, ahead.end), ahead, now),
            )
        came_back = self._promises.came_back(first, now)
        longest = self._max_wait * _BACK if came_back else self._longest_of_new(first, ahead)
        if ahead.wait > longest:
            seconds = self._retry(first, ahead.wait - self._max_wait * _NEW, ahead, now)
            self._promises.make(first, now + seconds)
            raise Overloaded(f"the wait would be {ahead.wait:.1f} s; the longest is {longest:.1f} s", seconds)
        came, fair = _tokens(requests), MOST_TOKENS / max(ahead.clients, 1)
        for waiting, bound in ((ahead.tokens, MOST_TOKENS), (ahead.all_tokens, MOST_OF_ALL)):
            if waiting + came > bound and ahead.own_tokens + came > fair:
                raise Overloaded(
                    f"{waiting} prompt tokens wait and {came} more arrived; the most is {bound}",
                    self._retry(first, ahead.wait, ahead, now),
                )

    @staticmethod
    def check_background(requests: Sequence[Request], waiting: int) -> None:
        """Accepts the sequences of a background call, which may wait for as long as they have to.

        Args:
          waiting: the prompt tokens of the background sequences that wait.

        Raises:
          Overloaded: their prompts do not fit into the queue.
        """
        came = _tokens(requests)
        if waiting and waiting + came > MOST_TOKENS:
            raise Overloaded(
                f"{waiting} background prompt tokens wait and {came} more arrived; the most is {MOST_TOKENS}",
                LONGEST_RETRY,
            )

    def _longest_of_new(self, request: Request, ahead: QueueAhead) -> float:
        """The longest wait of new requests: capacity that is promised to refused ones comes first."""
        promised = self._promises.expected(request.rank) * ahead.pace
        return max(self._max_wait * _LEAST_NEW, self._max_wait * _NEW - promised)

    def _retry(self, request: Request, soonest: float, ahead: QueueAhead, now: float) -> float:
        return self._promises.retry(request.rank, soonest, ahead.pace, now)


def _tokens(requests: Sequence[Request]) -> int:
    return sum(len(request.prompt) for request in requests)
