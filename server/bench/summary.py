"""The figures of a load, under the names that `vllm bench serve` gives them in its JSON.

Times are milliseconds in statistics and seconds elsewhere. A statistic without a value is None, where vLLM
writes 0: no answer must not look like the fastest one.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .load import Outcome
from .record import Record


def summarise(
    outcome: Outcome, percentiles: Sequence[float], metrics: Collection[str], limits: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of a load.

    Args:
      percentiles: to compute of each of `metrics`. limits: milliseconds that a good request keeps to.
    """
    good = [record for record in outcome.records if not record.failure]
    return {
        **_counts(outcome, good),
        **_rates(outcome, good, limits),
        **_peaks(good),
        **_client(outcome),
        **{
            name: value
            for metric, seconds in samples(outcome).items()
            if metric in metrics
            for name, value in _statistics(metric, seconds, percentiles).items()
        },
    }


def detailed(records: Sequence[Record]) -> dict[str, Any]:
    """The measurements of each request, in the order of their ends; seconds, and 0 for what failed."""
    return {
        "input_lens": [record.inputs for record in records],
        "output_lens": [0 if record.failure else record.outputs for record in records],
        "ttfts": [0.0 if record.failure else record.ttft for record in records],
        "itls": [record.gaps for record in records],
        "latencies": [0.0 if record.failure else record.latency for record in records],
        "start_times": [record.sent for record in records],
        "queue_times": [record.queued for record in records],
        "generated_texts": ["".join(record.text) for record in records],
        "errors": [
            f"{failure.kind}: {failure.message}" if (failure := record.failure) else "" for record in records
        ],
    }


def keeps(record: Record, limits: Mapping[str, float]) -> bool:
    """Whether a request keeps to all limits; of a single token, TPOT is 0."""
    found = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.latency}
    return all(1e3 * found[name] <= limit for name, limit in limits.items())


def _counts(outcome: Outcome, good: Sequence[Record]) -> dict[str, Any]:
    failures = [record.failure for record in outcome.records if record.failure]
    return {
        "duration": outcome.duration,
        "completed": len(good),
        "failed": len(failures),
        "failures": dict(Counter(failure.kind for failure in failures)),
        "first_error": f"{failures[0].kind}: {failures[0].message}" if failures else None,
        "interrupted": outcome.interrupted,
        "unfinished": outcome.unfinished,
        "total_input_tokens": sum(record.inputs for record in good),
        "total_cached_tokens": sum(record.cached_tokens or 0 for record in good),
        "total_output_tokens": sum(record.outputs for record in good),
        "total_wanted_tokens": sum(record.wanted for record in good),
        "output_tokens_counted_by": _counted_by(good),
    }


def _counted_by(good: Sequence[Record]) -> str | None:
    found = {"chunks" if record.output_tokens is None else "usage" for record in good}
    return found.pop() if len(found) == 1 else "usage and chunks" if found else None


def _rates(outcome: Outcome, good: Sequence[Record], limits: Mapping[str, float]) -> dict[str, Any]:
    seconds = outcome.duration
    inputs, outputs = (sum(getattr(record, name) for record in good) for name in ("inputs", "outputs"))
    kept = sum(keeps(record, limits) for record in good)
    return {
        "request_throughput": len(good) / seconds,
        "request_goodput": kept / seconds if limits else None,
        "output_throughput": outputs / seconds,
        "total_token_throughput": (inputs + outputs) / seconds,
    }


def _peaks(good: Sequence[Record]) -> dict[str, Any]:
    """The most chunks in a second since the first request, and the most requests at a time."""
    if not good:
        return {"max_output_tokens_per_s": None, "max_concurrent_requests": 0}
    began = min(record.sent for record in good)
    seconds = [int(moment - began) for record in good for moment in record.times]
    changes = sorted([(r.sent, 1) for r in good] + [(r.ended, -1) for r in good])
    return {
        "max_output_tokens_per_s": float(np.bincount(seconds).max()) if seconds else 0.0,
        "max_concurrent_requests": int(np.cumsum([change for _, change in changes]).max()),
    }


def _client(outcome: Outcome) -> dict[str, Any]:
    lags = [1e3 * lag for lag in outcome.lags]
    return {
        "client_cpu_seconds": outcome.cpu,
        "client_cpu_share": outcome.cpu / outcome.duration,
        "client_lag_p99_ms": float(np.percentile(lags, 99)) if lags else None,
        "client_lag_max_ms": max(lags, default=None),
    }


def samples(outcome: Outcome) -> dict[str, list[float]]:
    """The seconds of each metric, of the requests that succeeded.

    A closed load has no queue, because a request is due when another one ends.
    """
    good = [record for record in outcome.records if not record.failure]
    found = {
        "ttft": [record.ttft for record in good],
        "tpot": [record.tpot for record in good if record.tpot is not None],
        "itl": [gap for record in good for gap in record.gaps],
        "e2el": [record.latency for record in good],
    }
    if not outcome.pace.is_closed:
        found["client_queue_time"] = [record.queued for record in good]
        found["e2el_including_client_queue"] = [record.queued + record.latency for record in good]
    return found


def _statistics(metric: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, Any]:
    """Mean, median, standard deviation and percentiles in milliseconds."""
    values = 1e3 * np.array(seconds)
    found = {"mean": np.mean, "median": np.median, "std": np.std} if len(values) else {}
    names = [f"p{percentile:g}" for percentile in percentiles]
    at = np.percentile(values, percentiles) if len(values) else [None] * len(names)
    return {
        **{
            f"{name}_{metric}_ms": float(found[name](values)) if found else None
            for name in ("mean", "median", "std")
        },
        **{
            f"{name}_{metric}_ms": value if value is None else float(value)
            for name, value in zip(names, at, strict=True)
        },
    }
