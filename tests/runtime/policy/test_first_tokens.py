"""A prompt of another client is computed in one step, for which a client with many sequences pauses some."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from distaff.runtime.policy.clients import ActiveClients
from distaff.runtime.policy.first_tokens import LONGEST_PAUSE, make_room
from distaff.runtime.policy.step_times import StepTimes

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
    st.sampled_from([2.0, LONGEST_PAUSE + 1]),
)
def test_as_few_as_possible_of_the_largest_client_pause(owners, length, client, slowest):
    decoding = [make_sequence(number, [1, 2], 1, owner) for number, owner in enumerate(owners)]
    prompt = make_sequence(99, [3] * length, 1, client)
    size, pausing = make_room([prompt], decoding, known(slowest))
    largest = max("ab", key=owners.count)
    dominates = client not in owners and 2 * owners.count(largest) > len(owners) > 0
    fitting = [each for each in SIZES if each >= length and slowest * each / SIZES[-1] <= LONGEST_PAUSE]
    if not (dominates and fitting and fitting[0] == min(each for each in SIZES if each >= length)):
        assert (size, pausing) == (0, [])
        return
    excess = max(0, length + len(owners) - fitting[0])
    theirs = [each for each in decoding if each.request.client == largest]
    if excess > len(theirs):
        assert (size, pausing) == (0, [])
    else:
        assert size == fitting[0] and pausing == theirs[len(theirs) - excess :]


@pytest.fixture
def loop(monkeypatch) -> SimulatedLoop:
    """Seven sequences of one client decode, on nine slots. A step of 16 tokens lasts twice as long as one of
    decode rows alone, one of 24 three times and one of 32 five times."""
    monkeypatch.setattr(simulation, "next_token", lambda history: 7)  # no sequence ends early
    loop = SimulatedLoop(slots=9, pages=200, page_size=2, budget=32)
    for size, seconds in {8: 1.0, 16: 2.0, 24: 3.0, 32: 5.0}.items():
        loop.scheduler.step_times.record_trial("mixed", size, seconds)
        loop.scheduler.step_times.record_trial("decode", size, 1.0)
    for number in range(7):
        loop.submit([1 + number, 2], 40, "many")
    loop.submit([9, 9], 1, "few")
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
