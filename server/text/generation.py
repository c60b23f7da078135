"""The sequences of one call, which enter the engine together and are heard as one.

Knows requests and events, not text. The one idea: from the moment a sequence is submitted there is an object
that will abort it, and `abort` needs no await, so that no disconnect can slip in between and leak it.

What waits to be read is bounded here: a client that stops reading cannot make the server keep a reply for it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from ...runtime.request import Request, TokenEvent
from ..engine_client import EngineClient, EventStream

log = logging.getLogger(__name__)

MOST_UNREAD = 4096
"""Plain events that may wait to be read, for each sequence of a call, some 1.6 MB: a minute or more of a fast
model's tokens. An event with log-probabilities counts as many as it is large."""

_ALTERNATIVES = 4
"""Log-probabilities that take as much memory as a plain event."""


class Generation:
    """The running sequences of one call; `requests[i]` speaks as choice i."""

    def __init__(self, engine: EngineClient, requests: Sequence[Request], cut: Callable[[], None]) -> None:
        """Submits all of them, without an await.

        Args:
          cut: ends the connection of the client, who has left too many events unread.

        Raises:
          NotReady, Overloaded: they are refused.
        """
        self._cut = cut
        self._heard: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue()
        self._unread = 0
        self._streams: Sequence[EventStream] = engine.submit(requests)
        self._pumps = [asyncio.create_task(self._pump(i, s)) for i, s in enumerate(self._streams)]

    async def next(self, silence: float) -> tuple[int, TokenEvent] | None:
        """The next event and whose it is; None if nothing is heard for `silence` seconds.

        Raises:
          EngineFailed: the engine was lost.
        """
        if self._heard.empty():
            try:
                async with asyncio.timeout(silence):
                    choice, event = await self._heard.get()
            except TimeoutError:
                return None
        else:
            choice, event = self._heard.get_nowait()
        if isinstance(event, Exception):
            raise event
        self._unread -= _size(event)
        return choice, event

    def end(self, choice: int) -> None:
        """One choice has said enough. Idempotent; a no-op for a sequence that finished by itself."""
        self._streams[choice].abort()
        self._pumps[choice].cancel()

    def abort(self) -> None:
        """Ends whatever still runs. Idempotent, immediate, never raises."""
        for stream in self._streams:
            stream.abort()
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, choice: int, stream: EventStream) -> None:
        try:
            async for event in stream:
                self._keep(choice, event)
        except Exception as error:
            self._heard.put_nowait((choice, error))

    def _keep(self, choice: int, event: TokenEvent) -> None:
        """Holds an event until it is read. One too many ends the call: nobody reads it."""
        if self._unread >= MOST_UNREAD * len(self._streams):
            log.warning("a client left %d events unread and is cut off", self._heard.qsize())
            self.abort()
            self._cut()
            return
        self._unread += _size(event)
        self._heard.put_nowait((choice, event))


def _size(event: TokenEvent) -> int:
    """How many plain events an event is as large as."""
    return 1 + len(event.logprobs.top) // _ALTERNATIVES if event.logprobs else 1
