"""The arrivals of an open load: their rate, their law, and their reproducibility."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.bench.schedule import arrival_times


@given(
    st.integers(1, 300),
    st.floats(0.01, 1e4),
    st.one_of(st.floats(0.001, 1e3), st.just(math.inf)),
    st.integers(0, 1 << 32),
)
def test_arrivals_are_in_order_and_have_the_rate(count: int, rate: float, burstiness: float, seed: int):
    """The last one is due after exactly count / rate seconds, for every seed."""
    times = arrival_times(count, rate, burstiness, np.random.default_rng(seed))
    assert len(times) == count and times[0] >= 0 and (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx(count / rate)
    assert (times == arrival_times(count, rate, burstiness, np.random.default_rng(seed))).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_follow_the_gamma_distribution(burstiness: float):
    """Its coefficient of variation is 1 / sqrt(shape)."""
    gaps = np.diff(arrival_times(50_000, 20.0, burstiness, np.random.default_rng(3)), prepend=0)
    assert gaps.mean() == pytest.approx(1 / 20)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


def test_a_poisson_process_is_memoryless():
    """The numbers of arrivals in equal windows have a variance equal to their mean."""
    times = arrival_times(50_000, 10.0, 1.0, np.random.default_rng(4))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.06)


def test_extremes():
    """An infinite rate is everything at once, infinite burstiness is even."""
    random = np.random.default_rng(0)
    assert arrival_times(3, math.inf, 1.0, random).tolist() == [0, 0, 0]
    assert arrival_times(4, 2.0, math.inf, random).tolist() == [0.5, 1.0, 1.5, 2.0]
    assert arrival_times(0, math.inf, 1.0, random).tolist() == []
