"""The figures of a load against numpy and against cases computed by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.bench.flag_values import METRICS
from distaff.server.bench.load import Outcome, Pace
from distaff.server.bench.record import Failure, Record
from distaff.server.bench.summary import detailed, keeps, summarise


def record(sent: float, *gaps: float, due: float | None = None, **more: Any) -> Record:
    """Sent at `sent`, with a chunk after each gap; the last one ends it."""
    times = list(sent + np.cumsum(gaps))
    return Record(sent if due is None else due, sent, times=times, ended=times[-1], **more)


def outcome(*records: Record, duration: float = 10.0, pace: Pace | None = None) -> Outcome:
    return Outcome(pace or Pace(), list(records), duration=duration, cpu=1.0, lags=[0.001, 0.002])


def figures(found: Outcome, **limits: float) -> dict[str, Any]:
    return summarise(found, [50, 99, 99.9], list(METRICS), limits)


SECONDS = st.floats(1e-4, 100)
RECORDS = st.lists(
    st.builds(
        lambda due, wait, gaps, usage: record(due + wait, *gaps, due=due, output_tokens=usage),
        SECONDS,
        SECONDS,
        st.lists(SECONDS, min_size=1, max_size=9),
        st.one_of(st.none(), st.integers(0, 50)),
    ),
    min_size=1,
    max_size=12,
)


@given(RECORDS)
def test_statistics_are_numpys(records: list[Record]):
    """Of TTFT, TPOT, ITL, E2EL, the queue, and both together."""
    found = figures(outcome(*records))
    tokens = [len(r.times) if r.output_tokens is None else r.output_tokens for r in records]
    expected = {
        "ttft": [r.times[0] - r.sent for r in records],
        "tpot": [(r.ended - r.times[0]) / (n - 1) for r, n in zip(records, tokens, strict=True) if n > 1],
        "itl": np.concatenate([np.diff(r.times) for r in records]),
        "e2el": [r.ended - r.sent for r in records],
        "client_queue_time": [r.sent - r.due for r in records],
        "e2el_including_client_queue": [r.ended - r.due for r in records],
    }
    for metric, seconds in expected.items():
        for name, compute in (("mean", np.mean), ("median", np.median), ("std", np.std)):
            value = found[f"{name}_{metric}_ms"]
            assert value == (pytest.approx(1e3 * compute(seconds), abs=1e-6) if len(seconds) else None)
        for name, part in (("p50", 50), ("p99", 99), ("p99.9", 99.9)):
            value = found[f"{name}_{metric}_ms"]
            assert value == (
                pytest.approx(1e3 * np.percentile(seconds, part), abs=1e-6) if len(seconds) else None
            )
    assert found["output_throughput"] == pytest.approx(sum(tokens) / 10)


@given(RECORDS)
def test_most_requests_at_a_time(records: list[Record]):
    """As many as overlap with one of them when it is sent; a request that has ended does not count."""
    overlaps = [sum(other.sent <= r.sent < other.ended for other in records) for r in records]
    assert figures(outcome(*records))["max_concurrent_requests"] == max(overlaps)


def test_counts_and_rates():
    """Failed requests count as failed and in nothing else."""
    usage = {"prompt_tokens": 10, "output_tokens": 4, "cached_tokens": 3, "wanted": 5}
    failed = record(0.0, 9.0, failure=Failure("status 503", "busy"), **usage)
    lost = Record(0.0, 0.0, failure=Failure("no connection", "refused"))
    found = figures(outcome(record(0.0, 1.0, 0.5, **usage), failed, lost, record(0.5, 0.1, given=7)))
    assert (found["completed"], found["failed"]) == (2, 2)
    assert found["failures"] == {"status 503": 1, "no connection": 1}
    assert found["first_error"] == "status 503: busy"
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (17, 5)
    assert (found["total_cached_tokens"], found["total_wanted_tokens"]) == (3, 5)
    assert (found["request_throughput"], found["output_throughput"]) == (0.2, 0.5)
    assert found["total_token_throughput"] == 2.2
    assert found["output_tokens_counted_by"] == "usage and chunks"
    assert found["max_output_tokens_per_s"] == 2 and found["max_concurrent_requests"] == 2
    assert (found["client_cpu_share"], found["client_lag_max_ms"]) == (0.1, 2.0)
    assert found["request_goodput"] is None


def test_nothing_that_succeeded_has_no_statistics():
    """None and not 0, which would be the best value."""
    found = figures(outcome(Record(0.0, failure=Failure("timeout", ""))))
    assert found["mean_ttft_ms"] is None and found["p99_e2el_ms"] is None
    assert found["max_output_tokens_per_s"] is None and found["output_tokens_counted_by"] is None


def test_a_closed_load_has_no_queue():
    """Its requests are due when others end."""
    found = figures(outcome(record(0.0, 1.0), pace=Pace(concurrency=2)))
    assert "mean_client_queue_time_ms" not in found and "mean_ttft_ms" in found


def test_goodput_counts_requests_that_keep_to_all_limits():
    """A single token has no TPOT and keeps to every limit of it."""
    fast, slow = record(0.0, 0.1, 0.01, 0.01), record(0.0, 0.1, 0.5, 0.5)
    single = record(0.0, 0.15)
    found = outcome(fast, slow, single, record(0.0, 0.01, failure=Failure("timeout", "")))
    assert figures(found, ttft=120)["request_goodput"] == 0.2
    assert figures(found, tpot=20)["request_goodput"] == 0.2
    assert figures(found, ttft=120, tpot=20, e2el=2000)["request_goodput"] == 0.1
    assert keeps(single, {"tpot": 0, "ttft": 150, "e2el": 150}) and not keeps(single, {"e2el": 149})


def test_details_are_those_of_each_request():
    """Lists of the same length, in vLLM's names."""
    whole = record(1.0, 0.5, 0.25, due=0.5, text=["a", "b"])
    found = detailed([whole, Record(2.0, 2.0, failure=Failure("k", "m"))])
    assert found["ttfts"] == [0.5, 0.0] and found["itls"] == [[0.25], []]
    assert found["latencies"] == [0.75, 0.0] and found["queue_times"] == [0.5, 0.0]
    assert found["errors"] == ["", "k: m"] and found["generated_texts"] == ["ab", ""]
    assert found["output_lens"] == [2, 0] and found["start_times"] == [1.0, 2.0]
