"""A step's time is divided among its rows, and pages are counted for that time."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given

from distaff.runtime.policy.accounts import charge
from distaff.runtime.policy.sequence import Plan, Row

from .simulation import make_sequence

STEPS = st.lists(
    st.tuples(
        st.floats(1e-4, 10.0),
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=4),
        st.dictionaries(st.integers(0, 3), st.integers(0, 50)),
    ),
    max_size=12,
)


@given(STEPS)
def test_sequences_are_charged_by_tokens_and_by_pages(steps):
    """Compared with exact fractions."""
    sequences = [make_sequence(number, [1], 1) for number in range(4)]
    device, pages = [Fraction(0)] * 4, [Fraction(0)] * 4
    total = 0.0
    for seconds, rows, held in steps:
        tokens = sum(count for _, count in rows)
        for number, count in rows:
            device[number] += Fraction(seconds) * count / tokens
        for number, count in held.items():
            pages[number] += Fraction(seconds) * count
        planned = [Row(sequences[number], 0, 0, count, samples=True) for number, count in rows]
        plan = Plan(planned, held=[(sequences[number], count) for number, count in held.items()])
        total += charge(plan, seconds)
    assert [s.device_seconds for s in sequences] == pytest.approx([float(each) for each in device])
    assert [s.page_seconds for s in sequences] == pytest.approx([float(each) for each in pages])
    assert total == pytest.approx(float(sum(pages)))
    assert sum(device) == sum(Fraction(seconds) for seconds, *_ in steps)
