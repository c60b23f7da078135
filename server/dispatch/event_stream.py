"""The events of one request, from the engine's frames to the coroutine that reads them.

Knows neither processes nor HTTP. It holds what its reader has not yet taken; the reader is `generation.py`,
which takes everything at once and bounds what waits for the client.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from ...runtime.request import EngineFailed, Request, TokenEvent


class BufferedStream:
    """An `EventStream` that is filled from the outside.

    Attributes:
      request: whose events these are.
      ended: nothing more will be put in.
    """

    def __init__(self, request: Request, release: Callable[["BufferedStream", bool], None]) -> None:
        """Takes events for `request`.

        Args:
          release: is called exactly once, when the stream ends, with True if the engine still works on it.
        """
        self.request = request
        self.ended = False
        self._release = release
        self._events: deque[TokenEvent] = deque()
        self._failure: EngineFailed | None = None
        self._changed = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Appends an event."""
        self._events.append(event)
        self._changed.set()
        if event.finish:
            self._end(None, working=False)

    def fail(self, failure: EngineFailed, *, working: bool = False) -> None:
        """Ends the stream with an error, after what is buffered."""
        self._end(failure, working=working)

    def abort(self) -> None:
        """Ends the request wherever it is. Idempotent, immediate, never raises."""
        self._end(None, working=True)

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._failure:
                raise self._failure
            if self.ended:
                return
            self._changed.clear()
            await self._changed.wait()

    def _end(self, failure: EngineFailed | None, *, working: bool) -> None:
        if self.ended:
            return
        self.ended = True
        self._failure = failure
        self._changed.set()
        self._release(self, working)
