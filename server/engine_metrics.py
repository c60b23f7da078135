"""`EngineCollector`: the metrics of the engines and of the queue in front of them, for Prometheus.

They are read from each engine's newest snapshot at the time of a scrape; `metrics.py` counts calls. The label
is the replica's number.
"""

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .engine_client import MOVE_CAUSES, EngineClient, Replica

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
    "device_seconds",
    "page_seconds",
)


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
