"""How much may wait: requests, and prompt tokens, that have not yet had their first token.

Bounding both keeps the wait short and the memory small whatever the mixture of short and long prompts. Rows
that already generate are not counted; the engines' slots bound them. An operator who names a bound means all
requests under way, and it stands in place of ours. The one idea: however many engines stand behind it, there
is one queue and one account, which grows and shrinks with those that are ready.
"""

from collections.abc import Sequence

from ..runtime.request import InvalidRequest, Overloaded, Request
from .engine_client import EngineClient, EngineInfo

_REQUESTS_PER_SLOT = 8
_CONTEXTS = 16


def most_requests(wanted: int | None, slots: int) -> int:
    """How many requests are taken at once, by an operator's word or by ours: 8 for each slot."""
    return _REQUESTS_PER_SLOT * slots if wanted is None else wanted


def most_together(wanted: int | None, engine: EngineClient) -> int:
    """The most sequences that can ever enter at once, with all engines that are not given up."""
    return most_requests(wanted, sum(info.slots for info in _hoped_for(engine)))


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
    tokens = sum(len(request.prompt) for request in requests)
    room = _CONTEXTS * sum(info.context for info in _hoped_for(engine))
    if wanted is None and tokens > room:
        raise InvalidRequest(
            f"This request has {tokens} prompt tokens in all its sequences (prompts x choices); this server "
            f"takes at most {room} at once. Please send several requests.",
            param,
        )


def _hoped_for(engine: EngineClient) -> list[EngineInfo]:
    """The engines that serve, or will again."""
    return [each.info for each in engine.replicas if each.info and each.state != "stopped"]


class Admission:
    """The account of what is under way.

    Attributes:
      requests, tokens: waiting now. under_way: requests that wait or run.
    """

    def __init__(self, most_under_way: int | None = None) -> None:
        """No engine is ready yet.

        Args:
          most_under_way: the operator's bound on requests that wait or run; None bounds what waits.
        """
        self._engines: dict[object, EngineInfo] = {}
        self._most_under_way = most_under_way
        self.requests = 0
        self.tokens = 0
        self.under_way = 0

    @property
    def most_waiting(self) -> int:
        """Requests, by the slots of all engines."""
        return most_requests(None, sum(info.slots for info in self._engines.values()))

    @property
    def most_tokens(self) -> int:
        """Prompts of 16 full contexts for each engine."""
        return _CONTEXTS * sum(info.context for info in self._engines.values())

    def open(self, engine: object, info: EngineInfo) -> None:
        """An engine is ready; what it can do adds to the bounds."""
        self._engines[engine] = info

    def close(self, engine: object) -> None:
        """An engine is gone. Idempotent; what waits for it is counted out with its requests."""
        self._engines.pop(engine, None)

    def enter(self, request: Request) -> None:
        """Counts a request in.

        Raises:
          Overloaded: it is one too many, or its prompt is.
        """
        if self._most_under_way is None:
            self._check_waiting(len(request.prompt))
        elif self.under_way >= self._most_under_way:
            raise Overloaded(f"{self.under_way} requests are under way; the most is {self._most_under_way}")
        self.requests += 1
        self.tokens += len(request.prompt)
        self.under_way += 1

    def leave(self, request: Request) -> None:
        """It waits no longer: it had its first token, or ended without one."""
        self.requests -= 1
        self.tokens -= len(request.prompt)

    def end(self) -> None:
        """A request is under way no longer."""
        self.under_way -= 1

    def _check_waiting(self, prompt: int) -> None:
        if self.requests >= self.most_waiting:
            raise Overloaded(f"{self.requests} requests wait; the most is {self.most_waiting}")
        if self.tokens + prompt > self.most_tokens:
            raise Overloaded(
                f"{self.tokens} prompt tokens wait and {prompt} more came; the most is {self.most_tokens}"
            )
