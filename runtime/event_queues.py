"""Events sorted by request, for callers who wait for them in plain threads."""

import queue
import threading
from collections.abc import Iterator, Sequence

from .request import EngineFailed, InvalidRequest, TokenEvent


class EventQueues:
    """A queue per request; filled by the engine thread, emptied by whoever asked."""

    def __init__(self) -> None:
        self._boxes: dict[str, queue.SimpleQueue[TokenEvent]] = {}
        self._lock = threading.Lock()

    def open(self, request_id: str) -> None:
        """Begins to keep a request's events; must come before it is submitted.

        Raises:
          InvalidRequest: they are being kept already.
        """
        with self._lock:
            if request_id in self._boxes:
                raise InvalidRequest(f"request {request_id!r} is in flight; expected a new id", "id")
            self._boxes[request_id] = queue.SimpleQueue()

    def close(self, request_id: str) -> None:
        """Drops what is left and all that still comes."""
        with self._lock:
            self._boxes.pop(request_id, None)

    def deliver(self, events: Sequence[TokenEvent]) -> None:
        """Puts each event into its request's box; events nobody keeps are dropped."""
        for event in events:
            with self._lock:
                box = self._boxes.get(event.request_id)
            if box is not None:
                box.put(event)

    def read(self, request_id: str) -> Iterator[TokenEvent]:
        """Yields a request's events up to its last, waiting for each.

        Raises:
          InvalidRequest: the request ended with an error that is its own.
          EngineFailed: it ended with any other.
        """
        box = self._boxes[request_id]
        while True:
            event = box.get()
            if event.finish == "error":
                reason = f"request {request_id}: {event.error}"
                raise InvalidRequest(reason, event.param) if event.param else EngineFailed(reason)
            yield event
            if event.finish:
                return
