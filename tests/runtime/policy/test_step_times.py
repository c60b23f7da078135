"""The number of prompt tokens in a step while others decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.runtime.policy.step_times import PATIENCE, StepTimes

from .simulation import SimulatedLoop


def known(decode: dict[int, float], mixed: dict[int, float]) -> StepTimes:
    """Step times with trials of these sizes and seconds."""
    step_times = StepTimes()
    for size, seconds in decode.items():
        step_times.record_trial("decode", size, seconds)
    for size, seconds in mixed.items():
        step_times.record_trial("mixed", size, seconds)
    return step_times


SECONDS = st.floats(0.001, 10)


@given(SECONDS, st.lists(SECONDS, min_size=1, max_size=5).map(sorted), st.integers(1, 8), st.integers(0, 9))
def test_a_step_lasts_at_most_as_long_as_allowed(alone, mixed, decoding, waiting):
    """The largest step within `PATIENCE` is filled, or the smallest one with room for a prompt."""
    limit = PATIENCE * alone * max(1, waiting) * max(1, waiting / decoding)
    sizes = {16 << n: seconds for n, seconds in enumerate(mixed)}
    chosen = known({8: alone}, sizes).most_tokens(decoding, waiting)
    assert chosen in sizes and chosen > decoding
    assert sizes[chosen] <= limit or chosen == min(sizes)
    assert all(seconds > limit for size, seconds in sizes.items() if size > chosen)


@pytest.mark.parametrize("step_times", [StepTimes(), known({8: 1.0}, {}), known({}, {32: 1.0})])
def test_without_known_times_steps_are_filled(step_times):
    """There is no reason against the largest step if its time is unknown."""
    assert step_times.most_tokens(4, 1) is None


def test_without_decode_rows_prompts_do_not_wait():
    """A prompt alone is computed as fast as possible."""
    assert known({8: 0.01}, {32: 0.1, 64: 0.2}).most_tokens(0, 3) is None


def test_the_average_follows_new_times():
    """Times change with the length of sequences."""
    step_times = known({8: 1.0}, {})
    for _ in range(40):
        step_times.record("decode", 8, 3.0)
    assert (
        step_times.seconds("decode", 5) == pytest.approx(3.0, abs=0.01)
        and step_times.seconds("decode", 9) is None
    )


def test_no_step_is_believed_to_be_faster_than_a_smaller_one():
    """The time of the larger one is out of date if the smaller one has become slow."""
    step_times = known({4: 1.0}, {8: 2.0, 16: 2.2, 32: 9.0})
    assert step_times.most_tokens(2, 1) == 16
    for _ in range(20):
        step_times.record("mixed", 8, 6.0)
    assert step_times.most_tokens(2, 1) == 8


def test_a_size_that_was_slow_is_tried_again():
    """Its time from a busy machine fades while others run, towards the time of its trial."""
    step_times = known({1: 1.0, 4: 1.1}, {})
    for _ in range(40):
        step_times.record("decode", 4, 9.0)
    assert step_times.seconds("decode", 4) > 8.9 and step_times.seconds("decode", 1) == 1.0
    for _ in range(500):
        step_times.record("decode", 1, 1.0)
    assert step_times.seconds("decode", 4) == pytest.approx(1.1, abs=0.1)


def test_a_long_prompt_is_computed_in_chunks_beside_decode_rows():
    """While others decode, each step holds as much as the step times allow, and all have a row in it."""
    loop = SimulatedLoop(slots=4, pages=80, page_size=4, budget=64)
    loop.scheduler.step_times = known({4: 1.0}, {8: 2.0, 16: 2.4, 64: 9.0})
    loop.submit([1], 40)
    loop.run_once()
    loop.submit([7] * 60, 4)
    plans = [loop.run_once() for _ in range(4)]
    assert [plan.tokens for plan in plans if plan] == [16, 16, 16, 16]
    loop.run(200)
    assert not loop.unfinished
