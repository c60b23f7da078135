"""How much may wait: requests, and prompt tokens, that have not yet had their first token.

Bounding both keeps the wait short and the memory small whatever the mixture of short and long prompts. Rows
that already generate are not counted; the engine's slots bound them.
"""

from ..runtime.request import Overloaded, Request
from .engine_client import EngineInfo

_REQUESTS_PER_SLOT = 8
_CONTEXTS = 16


class Admission:
    """The account of what waits.

    Attributes:
      requests, tokens: waiting now. most_requests, most_tokens: the bounds.
    """

    def __init__(self, info: EngineInfo) -> None:
        """Derives the bounds from what the engine can do: 8 requests a slot, prompts of 16 full contexts."""
        self.most_requests = _REQUESTS_PER_SLOT * info.slots
        self.most_tokens = _CONTEXTS * info.context
        self.requests = 0
        self.tokens = 0

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
