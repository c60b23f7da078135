"""How much of a prompt a step takes in while others decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.policy.step_times import PATIENCE, StepTimes

from .simulation import Loop


def known(decode: dict[int, float], mixed: dict[int, float]) -> StepTimes:
    """Step times from trials of these sizes and seconds."""
    step_times = StepTimes()
    for size, seconds in decode.items():
        step_times.record_trial("decode", size, seconds)
    for size, seconds in mixed.items():
        step_times.record_trial("mixed", size, seconds)
    return step_times


SECONDS = st.floats(0.001, 10)


@given(SECONDS, st.lists(SECONDS, min_size=1, max_size=5).map(sorted), st.integers(1, 8), st.integers(0, 9))
def test_a_step_lasts_as_long_as_a_stream_has_patience(alone, mixed, decoding, waiting):
    """The largest step within the patience is filled, or the smallest that takes in anything at all."""
    limit = PATIENCE * alone * max(1, waiting) * max(1, waiting / decoding)
    sizes = {16 << n: seconds for n, seconds in enumerate(mixed)}
    chosen = known({8: alone}, sizes).most_tokens(decoding, waiting)
    assert chosen in sizes and chosen > decoding
    assert sizes[chosen] <= limit or chosen == min(sizes)
    assert all(seconds > limit for size, seconds in sizes.items() if size > chosen)


@pytest.mark.parametrize("step_times", [StepTimes(), known({8: 1.0}, {}), known({}, {32: 1.0})])
def test_without_experience_steps_are_filled(step_times):
    """Nothing speaks against the largest step where nobody knows how long it takes."""
    assert step_times.most_tokens(4, 1) is None


def test_where_nobody_decodes_nobody_is_kept_waiting():
    """A prompt alone is taken in as fast as it can be."""
    assert known({8: 0.01}, {32: 0.1, 64: 0.2}).most_tokens(0, 3) is None


def test_the_average_follows_the_news():
    """Times change with the length of what is decoded."""
    step_times = known({8: 1.0}, {})
    for _ in range(40):
        step_times.record("decode", 8, 3.0)
    assert (
        step_times.seconds("decode", 5) == pytest.approx(3.0, abs=0.01)
        and step_times.seconds("decode", 9) is None
    )


def test_no_step_is_believed_to_be_faster_than_a_smaller_one():
    """What was known of the larger one is old where the smaller one has become slow."""
    step_times = known({4: 1.0}, {8: 2.0, 16: 2.2, 32: 9.0})
    assert step_times.most_tokens(2, 1) == 16
    for _ in range(20):
        step_times.record("mixed", 8, 6.0)
    assert step_times.most_tokens(2, 1) == 8


def test_a_size_that_was_dear_is_given_another_chance():
    """What was noted of it while the machine was busy fades as the others run; what it is now, it stays."""
    step_times = known({1: 1.0, 4: 1.1}, {})
    for _ in range(40):
        step_times.record("decode", 4, 9.0)
    assert step_times.seconds("decode", 4) > 8.9 and step_times.seconds("decode", 1) == 1.0
    for _ in range(500):
        step_times.record("decode", 1, 1.0)
    assert step_times.seconds("decode", 4) == pytest.approx(1.1, abs=0.1)


def test_a_long_prompt_comes_in_pieces_beside_those_who_decode():
    """While others decode each step holds what the step times allow, and they all have a row in it."""
    loop = Loop(slots=4, pages=80, page_size=4, budget=64)
    loop.scheduler.step_times = known({4: 1.0}, {8: 2.0, 16: 2.4, 64: 9.0})
    loop.submit([1], 40)
    loop.run_once()
    loop.submit([7] * 60, 4)
    plans = [loop.run_once() for _ in range(4)]
    assert [plan.tokens for plan in plans if plan] == [16, 16, 16, 16]
    loop.run(200)
    assert not loop.unfinished
