"""One client's prompts lengthen no step that another client waits for."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.policy.clients import (
    ACTIVE_SECONDS,
    LONG_SECONDS,
    NOTICED_SECONDS,
    ActiveClients,
)

from .simulation import SimulatedLoop, make_sequence

NAMES = st.lists(st.sampled_from("abc"), max_size=6)


def active(*clients: str) -> ActiveClients:
    """Clients that have just sent a request."""
    made = ActiveClients()
    for client in clients:
        made.record(client, 100.0)
    return made


def sequences(clients):
    return [make_sequence(number, [1, 2], 1, client) for number, client in enumerate(clients)]


@given(NAMES, NAMES, NAMES)
def test_a_client_can_delay_only_itself(recent, prefilling, decoding):
    """All prompts of a single client count; of several, each that has no decoding sequence counts once."""
    clients = active(*recent, *prefilling, *decoding)
    urgent = clients.count_urgent(sequences(prefilling), sequences(decoding))
    if len({*recent, *prefilling, *decoding}) < 2:
        assert urgent == len(prefilling)
    else:
        assert urgent == sum(client in prefilling and client not in decoding for client in "abc")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 30)), min_size=1), st.floats(0, 15))
def test_a_client_is_active_for_some_seconds_after_its_last_request(arrivals, later):
    """Also if no other request arrives."""
    arrivals.sort(key=lambda arrival: arrival[1])
    clients = ActiveClients()
    for client, at in arrivals:
        clients.record(client, at)
        clients.advance(at)
    now = arrivals[-1][1] + later
    clients.advance(now)
    late = {client for client, at in arrivals if at >= now - ACTIVE_SECONDS}
    assert clients.should_await(LONG_SECONDS, []) == clients.several([]) == (len(late) > 1)


@given(NAMES, NAMES)
def test_a_client_with_a_sequence_is_active(recent, running):
    assert active(*recent).several(sequences(running)) == (len({*recent, *running}) > 1)


@given(NAMES, NAMES, st.sampled_from([0.0, NOTICED_SECONDS, LONG_SECONDS]))
def test_a_shorter_step_is_awaited_for_an_active_client_without_a_sequence(recent, running, seconds):
    clients = active(*recent, *running)
    several, absent = len({*recent, *running}) > 1, bool({*recent} - {*running})
    expected = several and (seconds == LONG_SECONDS or (seconds == NOTICED_SECONDS and absent))
    assert clients.should_await(seconds, sequences(running)) == expected


def test_a_request_that_comes_late_makes_no_client_older():
    clients = active("a", "b")
    clients.record("b", 1.0), clients.record("a", 109.0), clients.advance(109.0)
    assert clients.should_await(LONG_SECONDS, [])


def test_steps_of_a_long_stream_are_not_awaited_for_a_client_that_has_left():
    loop = SimulatedLoop(slots=2, pages=40, page_size=4, budget=8)
    loop.scheduler.step_times.record_trial("simulated", 8, LONG_SECONDS)
    now = time.monotonic()
    for client, at in (("left", now - ACTIVE_SECONDS - 1.0), ("here", now)):
        loop.scheduler.clients.record(client, at)
    assert loop.scheduler.should_read_first("simulated", 8)
    loop.run_once()
    assert not loop.scheduler.should_read_first("simulated", 8)


@pytest.mark.parametrize(
    ("clients", "seconds", "position"),
    [("ab", 0.2, 1), ("aa", 0.2, 2), ("ab", 0.02, 2), ("abc", 0.02, 1), ("abc", 0.01, 2)],
    ids=["long steps of two clients", "one client", "shorter steps", "a client has left", "short steps"],
)
def test_a_request_that_arrives_during_a_long_step_is_in_the_next(clients, seconds, position):
    """A step is launched behind the one that runs, unless that one is long and several clients are active."""
    loop = SimulatedLoop(slots=4, pages=40, page_size=4, budget=8)
    loop.scheduler.step_times.record_trial("simulated", 8, seconds)
    for client in clients:
        loop.submit([3] * 2, 30, client)
    loop.run_once()
    for sequence in loop.sequences[2:]:
        loop.abort(sequence)
    loop.during_step(lambda: loop.submit([5] * 2, 1, "a"))
    plans = [loop.run_once() for _ in range(2)]
    new = loop.sequences[-1]
    assert [any(row.sequence is new for row in plan.rows) for plan in plans].index(True) + 1 == position
