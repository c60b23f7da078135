"""Queues of events by request."""

import threading

import pytest

from distaff.runtime.event_queues import EventQueues
from distaff.runtime.request import EngineFailed, InvalidRequest, TokenEvent


def event(name: str, token: int | None = None, **rest) -> TokenEvent:
    return TokenEvent(request_id=name, token=token, **rest)


def test_each_reader_gets_its_own_events_in_order():
    """Up to and including the one with `finish`."""
    queues = EventQueues()
    queues.open("a")
    queues.open("b")
    queues.deliver([event("a", 1), event("b", 2), event("a", 3, finish="length")])
    queues.deliver([event("b", finish="stop"), event("nobody", 4)])
    assert [e.token for e in queues.read("a")] == [1, 3]
    assert [e.token for e in queues.read("b")] == [2, None]


def test_reading_waits_for_events():
    """An early reader gets the later events."""
    queues = EventQueues()
    queues.open("a")
    threading.Timer(0.05, queues.deliver, [[event("a", 1, finish="length")]]).start()
    assert [e.token for e in queues.read("a")] == [1]


def test_an_error_is_raised():
    """After the events before it."""
    queues = EventQueues()
    queues.open("a")
    queues.deliver([event("a", 1), event("a", finish="error", error="lost")])
    events = queues.read("a")
    assert next(events).token == 1
    with pytest.raises(EngineFailed, match="request a: lost"):
        next(events)


def test_an_error_of_the_requests_own_names_the_parameter():
    """As if it had been refused at once."""
    queues = EventQueues()
    queues.open("a")
    queues.deliver([event("a", finish="error", error="no end", param="grammar")])
    with pytest.raises(InvalidRequest, match="request a: no end") as refusal:
        next(queues.read("a"))
    assert refusal.value.param == "grammar"


def test_a_closed_queue_keeps_nothing():
    """Later events are dropped; a queue can be closed twice, and the id can be opened again."""
    queues = EventQueues()
    queues.open("a")
    queues.close("a")
    queues.close("a")
    queues.deliver([event("a", 1)])
    queues.open("a")
    queues.deliver([event("a", 2, finish="stop")])
    assert [e.token for e in queues.read("a")] == [2]
