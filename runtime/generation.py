"""Runs many requests on an engine and collects their events, a bounded number at a time.

An engine accepts any number of requests, but each waiting one costs memory. So a call with thousands keeps
only some more in flight than there are slots. What runs can be stopped, by Ctrl-C or by another thread. Then
each request keeps the events that it has.
"""

import logging
import queue
from collections.abc import Callable, Sequence
from typing import Protocol

from .event_queues import EventQueues, Sink, raised
from .request import Request, TokenEvent

log = logging.getLogger(__name__)

_AHEAD = 2
"""Requests in flight for each slot: those that wait begin in the step in which others end."""


class Submits(Protocol):
    """The interface of an engine that this module needs."""

    slots: int

    def submit(self, request: Request, arrival: int | None = None) -> None: ...

    def abort(self, request_id: str) -> None: ...


class InFlight:
    """The requests of a call, and the events that they have received; thread-safe as its engine is.

    Attributes:
      events: of each request, by id, in the order of the requests.
    """

    def __init__(self, engine: Submits, queues: EventQueues, requests: Sequence[Request], sink: Sink) -> None:
        """Submits nothing yet; `queues` is where the engine delivers events, `sink` receives them."""
        self._engine, self._queues, self._sink = engine, queues, sink
        self._waiting = iter(requests)
        self._running: set[str] = set()
        self.events: dict[str, list[TokenEvent]] = {request.id: [] for request in requests}

    def submit(self) -> bool:
        """Submits further requests, up to the bound; returns whether any are in flight."""
        while len(self._running) < _AHEAD * self._engine.slots:
            request = next(self._waiting, None)
            if request is None:
                break
            self._queues.open(request.id, self._sink)
            self._running.add(request.id)
            self._engine.submit(request)
        return bool(self._running)

    def add(self, event: TokenEvent) -> bool:
        """Adds an event; returns whether it is the last one of its request.

        Raises:
          InvalidRequest, EngineFailed: the request has failed.
        """
        self.events[event.request_id].append(raised(event))
        if event.finish:
            self._running.remove(event.request_id)
            self._queues.close(event.request_id)
        return bool(event.finish)

    def abort(self) -> None:
        """Aborts the requests that have not finished."""
        for request_id in self._running:
            self._engine.abort(request_id)
            self._queues.close(request_id)


_STOP = TokenEvent(request_id="")


class Generation:
    """The requests of a call in a plain thread."""

    def __init__(self, engine: Submits, queues: EventQueues, requests: Sequence[Request]) -> None:
        """Submits nothing yet."""
        self._pending: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        self._in_flight = InFlight(engine, queues, requests, self._pending)

    def stop(self) -> None:
        """Makes `run` end early; from any thread, also before it has begun."""
        self._pending.put(_STOP)

    def run(self, on_finished: Callable[[], None] = lambda: None) -> list[list[TokenEvent]]:
        """The events of each request, in the order of the requests.

        Ctrl-C stops it like `stop`. Then the last event of a request may not be its end, or there is none.

        Args:
          on_finished: called after each request.

        Raises:
          InvalidRequest, EngineFailed: of the first request that fails; the others are aborted.
        """
        try:
            while self._in_flight.submit() and (event := self._pending.get()) is not _STOP:
                if self._in_flight.add(event):
                    on_finished()
        except KeyboardInterrupt:
            log.warning("interrupted; what has not finished is returned as far as it is")
        finally:
            self._in_flight.abort()
        return list(self._in_flight.events.values())
