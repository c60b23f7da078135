"""A prompt of another client is computed in one step, for which a client with many sequences pauses some."""

import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from distaff.runtime.policy.clients import ACTIVE_SECONDS, ActiveClients
from distaff.runtime.policy.first_tokens import LONGEST_PAUSE, can_pause, make_room
from distaff.runtime.policy.step_times import PATIENCE, StepTimes

from . import simulation
from .simulation import SimulatedLoop, make_sequence

SIZES = (8, 16, 32)


def known(slowest: float = 2.0) -> StepTimes:
    times = StepTimes()
    times.record_trial("decode", 32, 1.0)
    for size in SIZES:
        times.record_trial("mixed", size, slowest * size / SIZES[-1])
    return times


@given(
    st.lists(st.sampled_from("aaab"), max_size=20),
    st.integers(2, 40),
    st.sampled_from("abc"),
    st.sampled_from([2.0, LONGEST_PAUSE, LONGEST_PAUSE + 1]),
)
def test_as_few_as_possible_of_the_largest_client_pause(owners, length, client, slowest):
    decoding = [make_sequence(number, [1, 2], 1, owner) for number, owner in enumerate(owners)]
    theirs = can_pause(make_sequence(99, [3] * length, 1, client), decoding)
    largest = max("ab", key=owners.count)
    if client in owners or 2 * owners.count(largest) <= len(owners):
        assert theirs == []
        return
    assert theirs == [each for each in reversed(decoding) if each.request.client == largest]
    size, pausing = make_room(length, len(owners), theirs, known(slowest))
    smallest = min((each for each in SIZES if each >= length), default=0)
    excess = max(0, length + len(owners) - smallest)
    quick = [each for each in SIZES if slowest * each / SIZES[-1] <= PATIENCE]
    holding = [each for each in SIZES if each > len(owners)]
    usual = max(quick[-1:] + holding[:1], default=0)
    if length + len(owners) <= usual:
        assert (size, pausing) == (0, [])
    elif not smallest or slowest * smallest / SIZES[-1] > LONGEST_PAUSE or excess > len(theirs):
        assert (size, pausing) == (0, [])
    else:
        assert size == smallest and pausing == theirs[:excess]


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=9), st.integers(-1, 1), st.booleans())
def test_only_for_a_rank_that_is_as_good_as_all_others_the_worst_one_pauses_first(ranks, rank, background):
    """Ranks are priorities; those of a batch's lines are worse than all others."""
    decoding = [make_sequence(number, [1, 2], 1, "many", each) for number, each in enumerate(ranks)]
    prompt = make_sequence(99, [3] * 9, 1, "few", rank, background)
    theirs = can_pause(prompt, decoding)
    assert bool(theirs) == (not background and rank <= min(ranks))
    places = [(each.request.priority, each.arrival) for each in theirs]
    assert places == sorted(places, reverse=True) and len(theirs) in (0, len(ranks))


@pytest.fixture
def loop(monkeypatch) -> SimulatedLoop:
    """Seven sequences of one client decode, on nine slots. A step of 16 tokens lasts twice as long as one of
    decode rows alone, one of 24 three times and one of 32 five times. The cache has a prompt of 28 tokens."""
    monkeypatch.setattr(simulation, "next_token", lambda history: 7)  # no sequence ends early
    loop = SimulatedLoop(slots=9, pages=200, page_size=2, budget=32, share=True)
    for size, seconds in {8: 1.0, 16: 2.0, 24: 3.0, 32: 5.0}.items():
        loop.scheduler.step_times.record_trial("mixed", size, seconds)
        loop.scheduler.step_times.record_trial("decode", size, 1.0)
    for number in range(7):
        loop.submit([1 + number, 2], 40, "many")
    loop.submit([9] * 28, 1, "few")
    for _ in range(5):
        loop.run_once()
    return loop


@pytest.mark.parametrize(("client", "expected"), [("few", [28]), ("many", [9, 9, 9, 1])])
def test_the_prompt_of_another_client_is_in_one_step(loop, client, expected):
    prompt, chunks = loop.submit([5] * 28, 1, client), []
    while not prompt.finished:
        plan = loop.run_once()
        chunks += [(row.count, len(plan.rows) - 1) for row in plan.rows if row.sequence is prompt]
    assert [count for count, _ in chunks] == expected
    assert [others for _, others in chunks] == ([4] if client == "few" else [7] * 4)


def test_streams_that_began_long_ago_make_room(loop):
    """Their client is active while they run, although no request of it has arrived for a while."""
    loop.scheduler.clients.advance(time.monotonic() + ACTIVE_SECONDS + 1.0)
    prompt = loop.submit([5] * 28, 1, "few")
    rows = loop.run_once().rows
    assert [row.count for row in rows if row.sequence is prompt] == [28]


def test_nobody_pauses_in_two_steps_in_a_row(loop):
    for client in ("few", "other"):
        loop.submit([5 + len(client)] * 28, 1, client)
    decoding = [sum(row.count == 1 for row in loop.run_once().rows) for _ in range(2)]
    assert decoding == [4, 7]


def test_a_client_that_fills_the_engine_has_shorter_steps_for_its_prompts(loop):
    """Twice a decode step instead of thrice (see above), but only while another client is active."""
    loop.scheduler.clients = ActiveClients()
    loop.submit([5] * 28, 1, "many")
    assert loop.run_once().tokens == 24


def test_a_line_of_a_batch_makes_no_room(loop):
    line = loop.submit([5] * 28, 1, "batches", background=True)
    plans = [loop.run_once() for _ in range(2)]
    assert [sum(row.sequence is not line for row in plan.rows) for plan in plans] == [7, 7]


def test_only_for_what_is_not_cached(loop):
    """Two of the tokens are left. A usual step has room for them, so nobody pauses."""
    prompt = loop.submit([9] * 28, 1, "few")
    rows = loop.run_once().rows
    assert [row.count for row in rows if row.sequence is prompt] == [2] and len(rows) == 8
    assert prompt.cached == 26


@given(
    spare=st.integers(-12, 12),
    length=st.integers(2, 31),
    cached=st.integers(0, 14),
    many=st.integers(3, 8),
    steps=st.integers(1, 8),
)
def test_nobody_pauses_unless_the_prompt_is_computed(spare, length, cached, many, steps):
    """However few pages are left, nobody pauses in a step without the prompt, or with a part of it."""
    loop = SimulatedLoop(slots=9, pages=200, page_size=2, budget=32, share=True)
    for size in SIZES:
        loop.scheduler.step_times.record_trial("mixed", size, size / 8)
        loop.scheduler.step_times.record_trial("decode", size, 1.0)
    loop.submit([5] * (2 * cached + 1), 1, "few")
    loop.run_once()
    for number in range(many):
        loop.submit([1 + number, 2], 40, "many")
    for _ in range(steps):
        loop.run_once()
    prompt = loop.submit([5] * length, 1, "few")
    while loop.pool.available > max(0, length // 2 + many + spare):
        loop.pool.allocate()
    for _ in range(6):
        had_begun = prompt.slot is not None
        plan = loop.run_once()
        rows = plan.rows if plan else []
        advanced = any(row.sequence is prompt for row in rows)
        assert advanced or not loop.scheduler._pausing, "sequences pause for nothing"
        assert not loop.scheduler._pausing or had_begun or rows[-1].samples, "it takes more than one step"
