"""The sequences of one call, which are submitted together and read as one stream.

Handles requests and events, not text. From the moment of submission an object is responsible for aborting
each sequence, and `abort` needs no await, so that a disconnect in between cannot leak it.

The number of unread events is bounded: a client that stops reading cannot make the server buffer a reply.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...runtime.request import Request, TokenEvent
from ..engine_client import EngineClient, EventStream
from ..protocol.marks import Received, Resumption
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
      resumed: whether another server had begun it. replaying: whether what it had is still being returned.
      generated: the tokens of all choices that have arrived, end tokens too, whether they are read or not.
    """

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[Request],
        cut: Callable[[], None],
        *,
        resumption: Resumption | None = None,
        watch: Callable[[int, TokenEvent], None] | None = None,
    ) -> None:
        """Submits all of them that have not ended, without an await.

        Args:
          cut: closes the connection of a client that has left too many events unread.
          resumption: what another server has already had, which comes first.
          watch: is called with each event and its choice as it arrives; not with replayed ones.

        Raises:
          NotReady, Overloaded: the sequences are refused.
        """
        self._cut = cut
        self._watch = watch
        self._events: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue()
        self._unread = 0
        self._taken: list[Received] | None = None
        self.resumed = self.replaying = resumption is not None
        replayed, ended = (resumption.received, resumption.ended) if resumption else ((), frozenset[int]())
        self._to_replay = len(replayed)
        left = [choice for choice in range(len(requests)) if choice not in ended]
        streams = engine.submit([requests[choice] for choice in left]) if left else []
        self._streams: dict[int, EventStream] = dict(zip(left, streams, strict=True))
        self.generated = 0
        self._waited: float | None = None
        self._newest: dict[int, TokenEvent] = {}
        for choice, event in replayed:
            self._note(choice, event)
        self._before = dict(self._newest)
        self._pumps = {i: asyncio.create_task(self._pump(i, each)) for i, each in self._streams.items()}

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
                self.replaying = False
                return None
        else:
            choice, event = self._events.get_nowait()
        if isinstance(event, Exception):
            raise event
        self.replaying = self._to_replay > 0
        if self.replaying:
            self._to_replay -= 1
            await asyncio.sleep(0)  # a long replay must not hold up other streams
            return choice, event
        self._unread -= _size(event)
        if self._taken is not None:
            self._taken.append((choice, event))
        return choice, event

    def taken(self) -> list[Received]:
        """The new events that `next` has returned since the last call; none before the first call."""
        found, self._taken = self._taken or [], []
        return found

    @property
    def resources(self) -> Resources:
        """What its sequences have used, on a lost server too, as of their newest events."""
        events = self._newest.values()
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
        if choice in self._before:
            event = _after(self._before[choice], event)
        if self._unread >= MOST_UNREAD * len(self._streams):
            log.warning("a client left %d events unread and is disconnected", self._events.qsize())
            self.abort()
            self._cut()
            return
        self._unread += _size(event)
        self._note(choice, event)

    def _note(self, choice: int, event: TokenEvent) -> None:
        self._newest[choice] = event
        self.generated += event.token is not None or event.end is not None
        if self._waited is None:
            self._waited = event.waited
        self._events.put_nowait((choice, event))


def _after(before: TokenEvent, event: TokenEvent) -> TokenEvent:
    """An event with what the sequence has used on the lost server, too."""
    device, pages = event.device_seconds + before.device_seconds, event.page_seconds + before.page_seconds
    return replace(event, device_seconds=device, page_seconds=pages)


def _size(event: TokenEvent) -> int:
    """The size of an event, in plain events."""
    return 1 + len(event.logprobs.top) // _ALTERNATIVES if event.logprobs else 1
