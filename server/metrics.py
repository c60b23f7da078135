"""What Prometheus reads, and the one log line that each finished call leaves.

Labels are statuses and finish reasons, never text from a client; lines carry counts and times, never a
prompt, an answer or a key. The engine's figures are read from its newest snapshot when somebody asks.
"""

import logging
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .engine_client import EngineClient

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_DURATION = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The figures of one web process, on a registry of its own."""

    def __init__(self, engine: EngineClient) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(EngineCollector(engine))
        self.responses = Counter("distaff_responses", "Responses begun.", ["status"], registry=registry)
        self.finished = Counter("distaff_choices", "Choices ended.", ["finish_reason"], registry=registry)
        self.in_flight = Gauge("distaff_requests_in_flight", "Calls being answered.", registry=registry)
        self.unknown = Counter(
            "distaff_unknown_parameters", "Unknown request parameters ignored.", registry=registry
        )
        self.prompt_tokens = Counter("distaff_prompt_tokens", "Tokens in prompts.", registry=registry)
        self.completion_tokens = Counter("distaff_completion_tokens", "Tokens answered.", registry=registry)
        self.first_token = _histogram(
            "time_to_first_token", "From arrival to first token.", _FIRST_TOKEN, registry
        )
        self.per_token = _histogram(
            "time_per_output_token", "Between tokens of a choice.", _PER_TOKEN, registry
        )
        self.duration = _histogram("request_duration", "From arrival to the last byte.", _DURATION, registry)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """The engine's gauges and counters, taken from its newest snapshot."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats
        yield _gauge("ready", "1 while the engine takes requests.", self._engine.state == "ready")
        yield _gauge("heartbeat_age_seconds", "Since it was last heard of.", self._engine.heartbeat_age)
        for name in ("waiting", "running", "free_pages", "total_pages", "compilations"):
            yield _gauge(name, f"EngineStats.{name}.", getattr(stats, name))
        for name in ("steps", "preemptions", "prompt_tokens", "generated_tokens"):
            family = CounterMetricFamily(f"distaff_engine_{name}", f"EngineStats.{name}.")
            family.add_metric([], getattr(stats, name))
            yield family

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry need not ask the engine before it is started."""
        return iter(())


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"distaff_engine_{name}", text, value=float(value))


def _histogram(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"distaff_{name}_seconds", text, buckets=buckets, registry=registry)


class CallRecord:
    """The account of one call, opened when it is admitted and closed exactly once."""

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

    def heard(self) -> None:
        """A choice said something."""
        if self._first is None:
            self._first = time.perf_counter()
            self._metrics.first_token.observe(self._first - self._started)

    def ended(self, reason: str) -> None:
        """A choice ended."""
        self._reasons.append(reason)
        self._metrics.finished.labels(reason).inc()

    def close(self, completion_tokens: list[int], *, cut_short: str | None = None) -> None:
        """The call is over; `cut_short` says why choices are left that never ended."""
        now = time.perf_counter()
        for _ in range(len(completion_tokens) - len(self._reasons) if cut_short else 0):
            self.ended(cut_short or "")
        self._metrics.in_flight.dec()
        self._metrics.completion_tokens.inc(sum(completion_tokens))
        self._metrics.duration.observe(now - self._started)
        longest = max(completion_tokens)
        if self._first is not None and longest > 1:
            self._metrics.per_token.observe((now - self._first) / (longest - 1))
        self._log(now, sum(completion_tokens))

    def _log(self, now: float, completion_tokens: int) -> None:
        first = "-" if self._first is None else f"{self._first - self._started:.3f}s"
        logger.info(
            "%s model=%s prompt=%d completion=%d first=%s total=%.3fs finish=%s",
            self._id,
            self._model,
            self._prompt_tokens,
            completion_tokens,
            first,
            now - self._started,
            ",".join(self._reasons),
        )
