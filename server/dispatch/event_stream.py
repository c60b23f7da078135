"""The events of one request, from the engine's frames to the coroutine that reads them.

Contains neither processes nor HTTP. It buffers events until they are read; the reader is `generation.py`,
which reads them at once and bounds the events that wait for the client.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from ...runtime.request import EngineFailed, Request, TokenEvent


class BufferedStream:
    """An `EventStream` that is filled by the dispatcher.

    Attributes:
      request: the request that the events belong to.
      ended: no more events will be added.
    """

    def __init__(self, request: Request, release: Callable[["BufferedStream", bool], None]) -> None:
        """A stream for the events of `request`.

        Args:
          release: called exactly once, when the stream ends, with True if the engine still works on it.
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
        """Ends the stream with an error, after the buffered events."""
        self._end(failure, working=working)

    def abort(self) -> None:
        """Aborts the request in any state. Idempotent, immediate, never raises."""
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
