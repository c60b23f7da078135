"""vLLM's metrics beside our own: the names and types that routers, autoscalers and dashboards read.

One series for each, with the label `model_name` and without one for the replica: to a router a server is one
worker. `engine_metrics.py` has the same figures for each replica, under names of ours. `vllm_observed.py`
has what is observed while calls are answered; this module computes the rest at a scrape. Names and types are
those of vLLM's V1 engine (`vllm/v1/metrics/loggers.py`), with the older names of the same figures, which
vLLM's production-stack and older dashboards read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ..runtime.request import EngineStats
from .engine_client import EngineClient
from .rising_sum import RisingSum

FINISHED_REASONS = ("stop", "length", "abort", "error")
_REASONS = {"stop": "stop", "tool_calls": "stop", "length": "length"} | dict.fromkeys(
    ("client_gone", "client_stalled", "shutdown", "timeout"), "abort"
)
"""vLLM's reason for each finish reason of ours; all others are errors."""

OLDER_NAMES = {
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_hits": "vllm:gpu_prefix_cache_hits",
    "vllm:prefix_cache_queries": "vllm:gpu_prefix_cache_queries",
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
}

_SUMS: Mapping[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prefix_cache_queries": (
        "Tokens of prompts that were looked up in the prefix cache.",
        lambda stats: stats.prompt_tokens + stats.cached_tokens,
    ),
    "prefix_cache_hits": ("Tokens of prompts that were found there.", attrgetter("cached_tokens")),
    "num_preemptions": ("Sequences that lost their pages and were queued again.", attrgetter("preemptions")),
}
"""Counters that are sums over engines: text and value."""


class VllmMetrics(Collector):
    """The metrics of one server under vLLM's names."""

    def __init__(
        self,
        engine: EngineClient,
        model: str,
        prompt_tokens: Counter,
        choices: Counter,
        observed: CollectorRegistry,
    ) -> None:
        """Starts at zero.

        Args:
          model: the label's value. prompt_tokens, choices: our counters of prompt tokens and of choices by
            finish reason. observed: what calls observe (`vllm_observed.py`).
        """
        self._engine = engine
        self._label = {"model_name": model}
        self._prompt_tokens = prompt_tokens
        self._choices = choices
        self._observed = observed
        self._sums = {name: RisingSum() for name in _SUMS}

    def describe(self) -> Iterator[Metric]:
        """Yields nothing, so that the registry does not query the engine before it is started."""
        return iter(())

    def collect(self) -> Iterable[Metric]:
        """All families; those with an older name, under that name as well."""
        for family in self._families():
            yield family
            if family.name in OLDER_NAMES:
                yield _renamed(family, OLDER_NAMES[family.name])

    def _families(self) -> Iterable[Metric]:
        total = self._engine.stats
        waiting = self._engine.queued[0] + total.waiting
        yield self._gauge("num_requests_waiting", "Sequences that wait.", waiting)
        yield self._gauge("num_requests_running", "Sequences that are computed.", total.running)
        used = (total.total_pages - total.free_pages) / total.total_pages if total.total_pages else 0.0
        yield self._gauge("kv_cache_usage_perc", "Pages in use; 1 is all of them.", used)
        yield from self._cache_config()
        for name, (text, figure) in _SUMS.items():
            value = self._sums[name].of(figure(engine.stats) for engine in self._engine.replicas)
            yield self._counter(name, text, value)
        yield self._counter("prompt_tokens", "Tokens in prompts.", _value(self._prompt_tokens))
        yield self._finished()
        yield from self._observed.collect()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._label))
        family.add_metric(list(self._label.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=list(self._label))
        family.add_metric(list(self._label.values()), value)
        return family

    def _cache_config(self) -> Iterator[Metric]:
        """The size of a page and the pages of all replicas, as labels; nothing before they are known."""
        info, pages = self._engine.info, self._engine.stats.total_pages
        if info is None or not pages:
            return
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache.", labels=["block_size", "num_gpu_blocks"]
        )
        family.add_metric([str(info.page_size), str(pages)], 1)
        yield family

    def _finished(self) -> Metric:
        labels = [*self._label, "finished_reason"]
        family = CounterMetricFamily("vllm:request_success", "Choices ended, by reason.", labels=labels)
        found: dict[str, float] = dict.fromkeys(FINISHED_REASONS, 0.0)
        for sample in _totals(self._choices):
            found[_REASONS.get(sample.labels["finish_reason"], "error")] += sample.value
        for reason, value in found.items():
            family.add_metric([*self._label.values(), reason], value)
        return family


def _renamed(family: Metric, name: str) -> Metric:
    """The same family under another name."""
    other = Metric(name, f"{family.documentation} Now {family.name}.", family.type)
    other.samples = [
        Sample(name + sample.name.removeprefix(family.name), *sample[1:]) for sample in family.samples
    ]
    return other


def _totals(counter: Counter) -> list[Sample]:
    """A counter's samples, without those of when it was created."""
    return [each for family in counter.collect() for each in family.samples if each.name.endswith("_total")]


def _value(counter: Counter) -> float:
    return sum(sample.value for sample in _totals(counter))
