"""Events sorted by request."""

import threading

import pytest

from distaff.runtime.event_queues import EventQueues
from distaff.runtime.request import EngineFailed, InvalidRequest, TokenEvent


def event(name: str, token: int | None = None, **rest) -> TokenEvent:
    return TokenEvent(request_id=name, token=token, **rest)


def test_everybody_hears_their_own_events_in_order():
    """Up to and including the one with `finish`."""
    boxes = EventQueues()
    boxes.open("a")
    boxes.open("b")
    boxes.deliver([event("a", 1), event("b", 2), event("a", 3, finish="length")])
    boxes.deliver([event("b", finish="stop"), event("nobody", 4)])
    assert [e.token for e in boxes.read("a")] == [1, 3]
    assert [e.token for e in boxes.read("b")] == [2, None]


def test_reading_waits_for_events():
    """Whoever reads early gets what comes later."""
    boxes = EventQueues()
    boxes.open("a")
    threading.Timer(0.05, boxes.deliver, [[event("a", 1, finish="length")]]).start()
    assert [e.token for e in boxes.read("a")] == [1]


def test_an_error_is_raised():
    """After the events before it."""
    boxes = EventQueues()
    boxes.open("a")
    boxes.deliver([event("a", 1), event("a", finish="error", error="lost")])
    events = boxes.read("a")
    assert next(events).token == 1
    with pytest.raises(EngineFailed, match="request a: lost"):
        next(events)


def test_an_error_of_the_requests_own_names_the_parameter():
    """As where it is refused at once."""
    boxes = EventQueues()
    boxes.open("a")
    boxes.deliver([event("a", finish="error", error="no end", param="grammar")])
    with pytest.raises(InvalidRequest, match="request a: no end") as refusal:
        next(boxes.read("a"))
    assert refusal.value.param == "grammar"


def test_a_closed_box_keeps_nothing():
    """What comes after closing is dropped; closing twice is fine, and the id can be opened anew."""
    boxes = EventQueues()
    boxes.open("a")
    boxes.close("a")
    boxes.close("a")
    boxes.deliver([event("a", 1)])
    boxes.open("a")
    boxes.deliver([event("a", 2, finish="stop")])
    assert [e.token for e in boxes.read("a")] == [2]
