"""The sequences of one call, which are submitted together and read as one stream.

Handles requests and events, not text. From the moment of submission an object is responsible for aborting
each sequence, and `abort` needs no await, so that a disconnect in between cannot leak it.

The number of unread events is bounded: a client that stops reading cannot make the server buffer a reply.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from ...runtime.request import Request, TokenEvent
from ..engine_client import EngineClient, EventStream
from ..protocol.usage import Resources

log = logging.getLogger(__name__)

MOST_UNREAD = 4096
"""The most unread events for each sequence of a call, some 1.6 MB: a minute or more of a fast model's tokens.
An event with log-probabilities counts as several, by its size."""

_ALTERNATIVES = 4
"""Log-probabilities that take as much memory as a plain event."""


class Generation:
    """The running sequences of one call; `requests[i]` is choice i.

    Attributes:
      replaying: whether the event that `next` returned last is one that another server has had.
    """

    replaying = False

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[Request],
        cut: Callable[[], None],
        *,
        replayed: Sequence[tuple[int, TokenEvent]] = (),
        records: bool = False,
        watch: Callable[[int, TokenEvent], None] | None = None,
    ) -> None:
        """Submits all of them that have not ended, without an await.

        Args:
          cut: closes the connection of a client that has left too many events unread.
          replayed: events that another server has already had, which come first.
          records: keeps events for `taken`.
          watch: is called with each event and its choice as it arrives; not with replayed ones.

        Raises:
          NotReady, Overloaded: the sequences are refused.
        """
        self._cut = cut
        self._watch = watch
        self._events: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue()
        self._unread = 0
        self._replayed = len(replayed)
        self._taken: list[tuple[int, TokenEvent]] | None = [] if records else None
        ended = {choice for choice, event in replayed if event.finish is not None}
        left = [choice for choice in range(len(requests)) if choice not in ended]
        streams = engine.submit([requests[choice] for choice in left]) if left else []
        self._streams: dict[int, EventStream] = dict(zip(left, streams, strict=True))
        for choice, event in replayed:
            self._unread += _size(event)
            self._events.put_nowait((choice, event))
        self._pumps = {i: asyncio.create_task(self._pump(i, each)) for i, each in self._streams.items()}
        self._waited: float | None = None
        self._newest: list[TokenEvent | None] = [None] * len(requests)
        self._before = dict(replayed)

    async def next(self, silence: float) -> tuple[int, TokenEvent] | None:
        """The next event and the index of its choice; None after `silence` seconds without an event.

        Raises:
          EngineFailed: the engine was lost.
        """
        if self._events.empty():
            try:
                async with asyncio.timeout(silence):
                    choice, event = await self._events.get()
            except TimeoutError:
                return None
        else:
            choice, event = self._events.get_nowait()
        if isinstance(event, Exception):
            raise event
        self._unread -= _size(event)
        self.replaying = self._replayed > 0
        self._replayed -= self.replaying
        if self._taken is not None:
            self._taken.append((choice, event))
        return choice, event

    def taken(self) -> list[tuple[int, TokenEvent]]:
        """The events that `next` has returned since the last call, if they are recorded."""
        if self._taken is None:
            return []
        found, self._taken = self._taken, []
        return found

    @property
    def resources(self) -> Resources:
        """What its sequences have used, on a lost server too, as of their newest events."""
        events = [event for event in (*self._newest, *self._before.values()) if event is not None]
        return Resources(
            device_seconds=sum(event.device_seconds for event in events),
            page_seconds=sum(event.page_seconds for event in events),
            queue_seconds=self._waited,
        )

    def end(self, choice: int) -> None:
        """Aborts one choice. Idempotent; a no-op for a sequence that has finished."""
        if choice in self._streams:
            self._streams[choice].abort()
            self._pumps[choice].cancel()

    def abort(self) -> None:
        """Aborts all running sequences. Idempotent, immediate, never raises."""
        for stream in self._streams.values():
            stream.abort()
        for pump in self._pumps.values():
            pump.cancel()

    async def _pump(self, choice: int, stream: EventStream) -> None:
        try:
            async for event in stream:
                if self._watch is not None:
                    self._watch(choice, event)
                self._keep(choice, event)
        except Exception as error:
            self._events.put_nowait((choice, error))

    def _keep(self, choice: int, event: TokenEvent) -> None:
        """Buffers an event until it is read. Ends the call if too many are unread."""
        self._newest[choice] = event
        if self._waited is None:
            self._waited = event.waited
        if self._unread >= MOST_UNREAD * len(self._streams):
            log.warning("a client left %d events unread and is disconnected", self._events.qsize())
            self.abort()
            self._cut()
            return
        self._unread += _size(event)
        self._events.put_nowait((choice, event))


def _size(event: TokenEvent) -> int:
    """The size of an event, in plain events."""
    return 1 + len(event.logprobs.top) // _ALTERNATIVES if event.logprobs else 1
