"""The metrics for Prometheus, and one log line for each finished call.

Labels are statuses, finish reasons, reasons for early ends (`endings.py`) and replica numbers, never text
from a client. Log lines contain counts and times, never a prompt, an answer or a key. Each engine's values
are read from its newest snapshot at the time of a scrape.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .endings import CUT_SHORT, REFUSALS, Ending
from .engine_client import MOVE_CAUSES, EngineClient, Replica

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Figure = Callable[[Replica], float]
"""The value of a metric for one engine."""

_LABELS = ("replica",)
_GAUGES = (
    *("waiting", "running", "free_pages", "kept_pages", "total_pages"),
    *("compilations", "buckets_ready", "buckets"),
)
_COUNTERS = (
    "steps",
    "preemptions",
    "prompt_tokens",
    "generated_tokens",
    "cached_tokens",
    "restored_pages",
    "drafted_tokens",
    "accepted_tokens",
)
BATCH_OUTCOMES = ("completed", "failed")
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_DURATION = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The metrics of one web process, on its own registry."""

    def __init__(self, engine: EngineClient) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(EngineCollector(engine))
        self.responses = Counter("distaff_responses", "Responses sent.", ["status"], registry=registry)
        self._cut_short = _by_reason(
            "calls_cut_short", "Calls that ended before their answer was complete.", CUT_SHORT, registry
        )
        self._refusals = _by_reason("refusals", "Calls that were refused.", REFUSALS, registry)
        self.finished = Counter("distaff_choices", "Choices ended.", ["finish_reason"], registry=registry)
        self.in_flight = Gauge("distaff_requests_in_flight", "Calls being answered.", registry=registry)
        self.unknown = Counter(
            "distaff_unknown_parameters", "Unknown request parameters ignored.", registry=registry
        )
        self.batch_lines = Counter(
            "distaff_batch_lines", "Lines of batches answered.", ["outcome"], registry=registry
        )
        for outcome in BATCH_OUTCOMES:
            self.batch_lines.labels(outcome)
        self.prompt_tokens = Counter("distaff_prompt_tokens", "Tokens in prompts.", registry=registry)
        self.completion_tokens = Counter("distaff_completion_tokens", "Tokens generated.", registry=registry)
        self.first_token = _histogram(
            "time_to_first_token", "From arrival to first token.", _FIRST_TOKEN, registry
        )
        self.per_token = _histogram(
            "time_per_output_token", "Between tokens of a choice.", _PER_TOKEN, registry
        )
        self.duration = _histogram("request_duration", "From arrival to the last byte.", _DURATION, registry)

    def count_line(self, succeeded: bool) -> None:
        """Counts a line of a batch that was answered."""
        self.batch_lines.labels(BATCH_OUTCOMES[not succeeded]).inc()

    def count_ending(self, reason: Ending) -> None:
        """Counts a call that ended early, or was refused."""
        counter = self._refusals if reason in REFUSALS else self._cut_short
        counter.labels(reason).inc()

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """Each replica's gauges and counters, from its newest snapshot, and those of the common queue."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        yield self._gauge("ready", "1 while it accepts requests.", lambda engine: engine.state == "ready")
        yield self._gauge(
            "given_up", "1 once it is no longer restarted.", lambda engine: engine.state == "stopped"
        )
        yield self._gauge(
            "heartbeat_age_seconds", "Seconds since its last frame.", attrgetter("heartbeat_age")
        )
        for name in _GAUGES:
            yield self._gauge(name, f"EngineStats.{name}.", attrgetter(f"stats.{name}"))
        for name in _COUNTERS:
            family = CounterMetricFamily(f"distaff_engine_{name}", f"EngineStats.{name}.", labels=_LABELS)
            yield self._filled(family, attrgetter(f"stats.{name}"))
        yield self._phases()
        requests, tokens = self._engine.queued
        yield GaugeMetricFamily(
            "distaff_queue_requests", "Sequences that wait for an engine.", value=requests
        )
        yield GaugeMetricFamily("distaff_queue_prompt_tokens", "Tokens of their prompts.", value=tokens)
        yield self._moves()

    def describe(self) -> Iterator[Metric]:
        """Yields nothing, so that the registry does not query the engine before it is started."""
        return iter(())

    def _gauge(self, name: str, text: str, figure: Figure) -> Metric:
        return self._filled(GaugeMetricFamily(f"distaff_engine_{name}", text, labels=_LABELS), figure)

    def _moves(self) -> CounterMetricFamily:
        text = "Sequences moved off an engine, to continue on another one or later."
        family = CounterMetricFamily("distaff_sequences_moved", text, labels=("cause",))
        moved = self._engine.moved
        for cause in MOVE_CAUSES:
            family.add_metric([cause], moved.get(cause, 0))
        return family

    def _phases(self) -> CounterMetricFamily:
        text = "Seconds of the engine's thread, by phase; idle: of the device, while requests wait."
        family = CounterMetricFamily("distaff_engine_phase_seconds", text, labels=(*_LABELS, "phase"))
        for number, engine in enumerate(self._engine.replicas):
            for phase, seconds in engine.stats.seconds.items():
                family.add_metric([str(number), phase], seconds)
        return family

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, figure: Figure) -> Metric:
        for number, engine in enumerate(self._engine.replicas):
            family.add_metric([str(number)], float(figure(engine)))
        return family


def _histogram(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"distaff_{name}_seconds", text, buckets=buckets, registry=registry)


def _by_reason(name: str, text: str, reasons: Iterable[str], registry: CollectorRegistry) -> Counter:
    """A counter with every reason from the start; otherwise the first event of one would be no increase."""
    counter = Counter(f"distaff_{name}", text, ["reason"], registry=registry)
    for reason in reasons:
        counter.labels(reason)
    return counter


class CallRecord:
    """The record of one call, opened when it is submitted and closed exactly once."""

    def __init__(self, metrics: Metrics, *, id: str, model: str, started: float, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._id = id
        self._model = model
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._first: float | None = None
        self._reasons: list[str] = []
        metrics.in_flight.inc()
        metrics.prompt_tokens.inc(prompt_tokens)

    def record_output(self) -> None:
        """Records output of a choice."""
        if self._first is None:
            self._first = time.perf_counter()
            self._metrics.first_token.observe(self._first - self._started)

    def ended(self, reason: str) -> None:
        """Records the end of a choice."""
        self._reasons.append(reason)
        self._metrics.finished.labels(reason).inc()

    def close(self, completion_tokens: list[int], ending: Ending | None) -> None:
        """Records the end of the call; `ending`: why it ended before its answer was complete, if it did."""
        now = time.perf_counter()
        if ending is not None:
            for _ in range(len(completion_tokens) - len(self._reasons)):
                self.ended(ending)
            if ending not in self._reasons:
                self._reasons.append(ending)  # all choices ended, but the answer is incomplete
        self._metrics.in_flight.dec()
        self._metrics.completion_tokens.inc(sum(completion_tokens))
        self._metrics.duration.observe(now - self._started)
        longest = max(completion_tokens)
        if self._first is not None and longest > 1:
            self._metrics.per_token.observe((now - self._first) / (longest - 1))
        self._log(now, sum(completion_tokens))

    def _log(self, now: float, completion_tokens: int) -> None:
        first = "-" if self._first is None else f"{self._first - self._started:.3f}s"
        log.info(
            "%s model=%s prompt=%d completion=%d first=%s total=%.3fs finish=%s",
            self._id,
            self._model,
            self._prompt_tokens,
            completion_tokens,
            first,
            now - self._started,
            ",".join(self._reasons),
        )
