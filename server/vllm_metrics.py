"""vLLM's metrics beside our own: the names and types that routers, autoscalers and dashboards read.

One series for each, with the label `model_name` and without one for the replica: to a router a server is one
worker. `engine_metrics.py` has the same figures for each replica, under names of ours. Names, types and
buckets are those of vLLM's V1 engine (`vllm/v1/metrics/loggers.py`, `buckets.py`), with the older names of
the same figures, which vLLM's production-stack and older dashboards read.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ..runtime.request import EngineStats, TokenEvent
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

_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_INTERVAL = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)


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
    """The metrics of one server under vLLM's names.

    Attributes:
      first_token, request: histograms of seconds from a call's arrival to its first token, and to its end.
      interval: of seconds between tokens of a choice. queue: of seconds that a choice waited to be computed.
      generated: counts generated tokens as they arrive.
    """

    def __init__(self, engine: EngineClient, model: str, prompt_tokens: Counter, choices: Counter) -> None:
        """Starts at zero.

        Args:
          model: the label's value. prompt_tokens, choices: our counters of prompt tokens and of choices by
            finish reason, which are shown under vLLM's names, too.
        """
        self._engine = engine
        self._label = {"model_name": model}
        self._prompt_tokens = prompt_tokens
        self._choices = choices
        self._own = registry = CollectorRegistry()
        labels = list(self._label)
        generated = Counter("vllm:generation_tokens", "Tokens generated.", labels, registry=registry)
        self.generated = generated.labels(model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"vllm:{name}_seconds", text, labels, buckets=buckets, registry=registry)
            return family.labels(model)

        self.first_token = histogram("time_to_first_token", "From arrival to first token.", _FIRST_TOKEN)
        self.interval = histogram("inter_token_latency", "Between tokens of a choice.", _INTERVAL)
        self.request = histogram("e2e_request_latency", "From arrival to the last byte.", _REQUEST)
        self.queue = histogram("request_queue_time", "From submission to the first step.", _REQUEST)
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

    def watch(self, *, background: bool) -> Callable[[int, TokenEvent], None]:
        """What is called with each event of one call; `background`: only its tokens are counted.

        Tokens of a step that accepts drafts arrive together, so all but one of their intervals are about 0:
        the mean is that of tokens, as for any others.
        """
        last: dict[int, float] = {}

        def seen(choice: int, event: TokenEvent) -> None:
            if event.waited is not None and not background:
                self.queue.observe(event.waited)
            if event.token is None and event.end is None:
                return
            self.generated.inc()
            now = time.perf_counter()
            if choice in last and not background:
                self.interval.observe(now - last[choice])
            last[choice] = now

        return seen

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
        yield from self._own.collect()

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
