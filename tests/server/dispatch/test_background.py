"""Sequences of worse ranks use what better ones leave idle, and better ones never notice them."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from distaff.runtime.request import EngineFailed, Overloaded
from distaff.server.dispatch import admission
from distaff.server.dispatch.admission import Admission
from distaff.server.dispatch.promises import Promises
from distaff.server.dispatch.queue_ahead import QueueAhead, queue_ahead

from .scripted import INFO, POISON, SLOTS, World, heard, request, token_at

BACKGROUND = math.inf

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([-3, 0, 2]), st.sampled_from("abc"), st.integers(1, 12)),
        st.tuples(st.just(BACKGROUND), st.sampled_from("abd"), st.integers(1, 12)),
        st.tuples(st.just("step"), st.just(""), st.integers(1, 6)),
    ),
    max_size=40,
)
"""The priority of a new sequence, or that it is a background one; or steps."""


def played(actions: list[tuple[object, str, int]], *, worst: float) -> tuple[World, dict[str, float]]:
    """The world after some actions, and when each sequence began, again after each move.

    Args:
      worst: of sequences with a worse priority there are none.
    """
    world = World(1)
    world.begin(0)
    began: dict[str, float] = {}

    def look() -> None:
        for each in world.engines[0].given:
            began.setdefault(each.id, world.now)

    for number, (what, client, amount) in enumerate(actions):
        if what == "step":
            for _ in range(amount):
                world.step(0)
                look()
        elif what <= worst:
            background = what == BACKGROUND
            priority = 0 if background else what
            world.submit(request(str(number), amount, client, background=background, priority=priority))
            look()
    return world, began


@given(ACTIONS, st.sampled_from([-3, 0, 2]))
@settings(max_examples=300, deadline=None)
def test_sequences_begin_as_if_there_were_none_of_a_worse_rank(actions, worst):
    """At the same moment, whatever the others do; and all are finished in the end."""
    alone, expected = played(actions, worst=worst)
    world, began = played(actions, worst=BACKGROUND)
    better = {str(number) for number, (what, *_) in enumerate(actions) if what != "step" and what <= worst}
    assert {name: when for name, when in began.items() if name.split("~")[0] in better} == expected
    if worst == 2:
        assert alone.dispatcher.queued == world.dispatcher.queued
    ahead, without = (each.dispatcher._ahead(request("", 1, "a", priority=worst)) for each in (world, alone))
    for figure in ("under_way", "tokens", "own_tokens", "clients"):
        assert getattr(ahead, figure) == getattr(without, figure), figure
    world.run()
    for number, (what, _, amount) in enumerate(actions):
        if what != "step":
            stream = world.streams[str(number)]
            said = [token_at(stream.request, position) for position in range(amount)]
            assert heard(stream) == (said, "length")


CALLS = st.lists(
    st.tuples(
        st.sampled_from([-3, 0, 2]),
        st.integers(0, 3),
        st.floats(0.0, 40.0),
        st.sampled_from([0.0, 3.0, 20.0]),
    ),
    max_size=40,
)
"""A call's priority, the number of its prompt, its wait, and the seconds since the call before."""


def decisions(calls: list[tuple[int, int, float, float]], *, worst: int) -> list[tuple[int, float | None]]:
    """Each call's priority, and the time after which it may return; None if it is accepted.

    Args:
      worst: calls of a worse priority are not sent.
    """
    gate, now = Admission(max_wait=20.0), 0.0
    found: list[tuple[int, float | None]] = []
    for priority, number, wait, seconds in calls:
        now += seconds
        if priority > worst:
            continue
        asked, retry = request("", 1, prompt=(number,), priority=priority), None
        try:
            gate.check([asked], QueueAhead(wait=wait, pace=1.5), now)
        except Overloaded as refused:
            retry = refused.retry_after
        found.append((priority, retry))
    return found


@given(CALLS, st.sampled_from([-3, 0]))
def test_calls_are_admitted_as_if_there_were_none_of_a_worse_rank(calls, worst):
    """And told the same times, whatever worse ones were told, and however many of those return."""
    every = decisions(calls, worst=2)
    assert [each for each in every if each[0] <= worst] == decisions(calls, worst=worst)


def test_a_flood_of_a_worse_priority_changes_no_admission():
    """Neither by its promises nor by the operator's bound; its own sequences are refused."""
    for flood in (0, 200):
        world = World(1, Admission(most_under_way=5, max_wait=30.0))
        world.begin(0)
        world.submit(*(request(f"{n}", 14, "a") for n in range(SLOTS)))
        refused = 0
        for n in range(flood):
            try:
                world.submit(request(f"low{n}", 100, "low", prompt=(n, 2, 3), priority=9))
            except Overloaded:
                refused += 1
        assert refused == max(0, flood - 2)
        world.submit(request("a", 10, "a"), request("b", 10, "a"))
        with pytest.raises(Overloaded, match="5 requests are in progress; the most is 5") as late:
            world.submit(request("c", 10, "a"))
        assert late.value.retry_after == pytest.approx(14.3)


def test_the_ranks_that_are_remembered_are_bounded_and_the_best_ones_stay():
    promises = Promises()
    asked = [request("", 1, prompt=(n,), priority=n) for n in range(200)]
    for each in reversed(asked):
        promises.make(each, promises.retry(each.rank, 10.0, 1.0, 0.0))
    assert promises.expected((False, 1000)) == 64.0
    assert promises.expected((False, 63)) == 64.0
    assert promises.retry((False, 1000), 5.0, 1.0, 0.0) == 11.0  # behind the best ones
    assert promises.expected((False, 1000)) == 64.0
    assert all(promises.came_back(each, 10.0) for each in asked[:64])


def test_the_promises_that_are_remembered_are_bounded_and_the_best_ones_stay(monkeypatch):
    monkeypatch.setattr("distaff.server.dispatch.promises._MOST_PROMISES", 10)
    promises = Promises()
    for priority in (0, 5, 0):
        for n in range(8):
            each = request("", 1, prompt=(priority, n, len(promises._ranks)), priority=priority)
            promises.make(each, promises.retry(each.rank, 10.0, 0.0, 0.0))
    assert promises.expected((False, 0)) == promises.expected((False, 5)) == 10.0


def test_all_waiting_prompts_are_bounded_whatever_their_priorities(monkeypatch):
    """Twice what those up to one priority may have; a client within its share is admitted even then."""
    monkeypatch.setattr(admission, "MOST_TOKENS", 20)
    monkeypatch.setattr(admission, "MOST_OF_ALL", 40)
    world = World(1)
    for priority in (9, 8):
        world.submit(request(f"{priority}", 2, "a", prompt=(1,) * 20, priority=priority))
        with pytest.raises(Overloaded, match="20 prompt tokens wait and 1 more arrived; the most is 20"):
            world.submit(request("more", 2, "a", priority=priority, prompt=(1,)))
    world.submit(request("best", 2, "b", prompt=(1,) * 8))
    with pytest.raises(Overloaded, match="48 prompt tokens wait and 11 more arrived; the most is 40"):
        world.submit(request("next", 2, "c", prompt=(1,) * 11))
    world.submit(request("next", 2, "c", prompt=(1,) * 10))


def test_background_runs_on_every_idle_slot_and_makes_way_youngest_first():
    world = World(1)
    world.begin(0)
    world.submit(*(request(f"line {n}", 20, background=True) for n in range(SLOTS + 1)))
    world.step(0)
    assert set(world.engines[0].rows) == {f"line {n}" for n in range(SLOTS)}
    world.submit(request("chat", 2, "a"))
    assert set(world.engines[0].rows) == {"chat", "line 0", "line 1"}
    assert world.dispatcher.moved["preempted"] == 1
    world.step(0)
    world.step(0)
    assert set(world.engines[0].rows) == {"line 0", "line 1", "line 2~1"}  # the interrupted one comes first
    assert world.engines[0].given[-1].generated == (token_at(request("", 1), 0),)


def test_background_is_not_counted_in_the_queue_nor_in_waits():
    """Neither the operator's bound on requests nor the predicted wait refuses a request because of it."""
    world = World(1, Admission(most_under_way=1, max_wait=0.1))
    world.begin(0)
    world.submit(*(request(f"line {n}", 4000, background=True) for n in range(20)))
    assert world.dispatcher.queued == (0, 0) and world.dispatcher.under_way == 20
    world.submit(request("chat", 2))
    with pytest.raises(Overloaded):
        world.submit(request("another", 2))
    assert "chat" in world.engines[0].rows


def test_background_begins_only_where_its_pages_are_free_and_gives_them_back():
    world = World(1)
    engine = world.engines[0]
    engine.info = replace(INFO, pages=100, page_size=1)
    world.begin(0)
    engine.total_pages = engine.free_pages = 100
    world.submit(request("line 0", 9, prompt=(1,) * 80, background=True))
    world.submit(request("line 1", 9, prompt=(1,) * 80, background=True))
    assert set(engine.rows) == {"line 0"}
    world.step(0)
    engine.free_pages = 18
    world.submit(request("small", 2, prompt=(1,) * 5))
    assert set(engine.rows) == {"line 0", "small"}
    world.submit(request("chat", 2, prompt=(1,) * 30))
    assert set(engine.rows) == {"small", "chat"}


def test_a_background_sequence_is_not_run_in_isolation():
    """That would keep interactive ones waiting: it fails when it has been there at two crashes."""
    world = World(1)
    world.begin(0)
    (poison,) = world.submit(request("poison", 5, prompt=(POISON, 0), background=True))
    for _ in range(2):
        world.step(0)
        world.begin(0)
    assert isinstance(heard(poison)[1], EngineFailed)
    assert world.dispatcher._isolated is None


def test_prompts_of_waiting_background_sequences_are_bounded(monkeypatch):
    monkeypatch.setattr(admission, "MOST_TOKENS", 20)
    world = World(1)
    world.submit(request("first", 2, prompt=(1,) * 30, background=True))
    with pytest.raises(Overloaded, match="30 background prompt tokens wait and 1 more"):
        world.submit(request("second", 2, prompt=(1,), background=True))


def test_a_waiting_background_sequence_outlasts_any_pause():
    """It waits for an engine for as long as it takes."""
    world = World(1, most_pause=1.0)
    world.begin(0)
    world.submit(request("line", 3, background=True))
    world.kill(0, by_others=True)
    world.wait(100.0)
    world.run()
    assert heard(world.streams["line"])[1] == "length"


def test_a_better_priority_begins_first_and_takes_the_place_of_the_worst():
    """Of the worst priority the youngest one; it continues later with the tokens that it has."""
    world = World(1)
    world.begin(0)
    for name, priority in {"zero": 0, "old": 5, "young": 5, "waits": 5}.items():
        world.submit(request(name, 20, "a", priority=priority))
    world.submit(request("line", 3, "a", background=True))
    world.submit(request("next", 2, "b", priority=1))
    assert set(world.engines[0].rows) == {"zero", "old", "next"}
    world.step(0)
    world.submit(request("best", 1, "a", priority=-1))
    assert set(world.engines[0].rows) == {"zero", "next", "best"}
    world.step(0)
    assert set(world.engines[0].rows) == {"zero", "old~1", "young~1"}
    assert world.engines[0].given[-2].generated == (token_at(request("", 1), 0),)
    world.run()
    assert all(heard(stream)[1] == "length" for stream in world.streams.values())
    assert [given.id for given in world.engines[0].given][-1] == "line"


@given(
    waiting=st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from("ab")), max_size=12),
    steps=st.integers(0, 8),
    mine=st.sampled_from([-1, 0, 1]),
)
@settings(deadline=None)
def test_the_predicted_wait_counts_what_is_before_a_priority(waiting, steps, mine):
    """All of them alike; a client of its own within its share can only be earlier."""
    world = World(1)
    world.begin(0)
    for number, (priority, client) in enumerate(waiting):
        world.submit(request(f"{number}", 10, client, priority=priority))
    for _ in range(steps):
        world.step(0)
    dispatcher = world.dispatcher
    newcomer = request("new", 10, "a", priority=mine)
    line = queue_ahead(newcomer, dispatcher._queues, world.handles, dispatcher._forecast, 0)
    world.submit(newcomer)
    waited = 0
    while not any(given.id == "new" for given in world.engines[0].given):
        world.step(0)
        waited += 1
    assert abs(line.wait - waited) <= 14.0  # a slot, and the prompts that are computed again
    if mine == -1 and all(priority > -1 for priority, _ in waiting):
        assert line.wait == waited == 0
