"""One queue of events per request, for callers that wait in plain threads."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

from .request import EngineFailed, InvalidRequest, TokenEvent


class Sink(Protocol):
    """Receives events on the engine's thread."""

    def put(self, item: TokenEvent) -> object: ...


class EventQueues:
    """A queue per request; the engine's thread fills it, the caller reads it."""

    def __init__(self) -> None:
        self._queues: dict[str, Sink] = {}
        self._lock = threading.Lock()

    def open(self, request_id: str, into: "Sink | None" = None) -> None:
        """Creates a request's queue; call this before the request is submitted.

        Args:
          into: receives the events instead of a queue of its own.

        Raises:
          InvalidRequest: there is a queue for this id already.
        """
        with self._lock:
            if request_id in self._queues:
                raise InvalidRequest(f"request {request_id!r} is in flight; expected a new id", "id")
            self._queues[request_id] = queue.SimpleQueue() if into is None else into

    def close(self, request_id: str) -> None:
        """Drops the queue, the events in it and all later ones."""
        with self._lock:
            self._queues.pop(request_id, None)

    def deliver(self, events: Sequence[TokenEvent]) -> None:
        """Puts each event into its request's queue; events without a queue are dropped."""
        for event in events:
            with self._lock:
                pending = self._queues.get(event.request_id)
            if pending is not None:
                pending.put(event)

    def read(self, request_id: str) -> Iterator[TokenEvent]:
        """Yields a request's events up to the last one, and waits for each.

        Raises:
          InvalidRequest: the request ended with an error in one of its own parameters.
          EngineFailed: it ended with any other error.
        """
        pending = self._queues[request_id]
        assert isinstance(pending, queue.SimpleQueue), "opened without a queue of its own"
        while True:
            event = raised(pending.get())
            yield event
            if event.finish:
                return


def raised(event: TokenEvent) -> TokenEvent:
    """The event, unless it reports an error; raises as `EventQueues.read` does."""
    if event.finish == "error":
        reason = f"request {event.request_id}: {event.error}"
        raise InvalidRequest(reason, event.param) if event.param else EngineFailed(reason)
    return event
