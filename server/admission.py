"""How much may wait: requests, and prompt tokens, that have not yet had their first token.

Bounding both keeps the wait short and the memory small whatever the mixture of short and long prompts. Rows
that already generate are not counted; the engines' slots bound them. The one idea: however many engines stand
behind it, there is one queue and one account, which grows and shrinks with those that are ready.
"""

from ..runtime.request import Overloaded, Request
from .engine_client import EngineInfo

_REQUESTS_PER_SLOT = 8
_CONTEXTS = 16


class Admission:
    """The account of what waits.

    Attributes:
      requests, tokens: waiting now.
    """

    def __init__(self) -> None:
        """No engine is ready yet."""
        self._engines: dict[object, EngineInfo] = {}
        self.requests = 0
        self.tokens = 0

    @property
    def most_requests(self) -> int:
        """8 requests for each slot."""
        return _REQUESTS_PER_SLOT * sum(info.slots for info in self._engines.values())

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
        if self.requests >= self.most_requests:
            raise Overloaded(f"{self.requests} requests wait; the most is {self.most_requests}")
        if self.tokens + len(request.prompt) > self.most_tokens:
            raise Overloaded(
                f"{self.tokens} prompt tokens wait and {len(request.prompt)} more came; "
                f"the most is {self.most_tokens}"
            )
        self.requests += 1
        self.tokens += len(request.prompt)

    def leave(self, request: Request) -> None:
        """Counts a request out: it had its first token, or ended without one."""
        self.requests -= 1
        self.tokens -= len(request.prompt)
