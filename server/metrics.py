"""The metrics of calls for Prometheus; `engine_metrics.py` has those of engines, `vllm_metrics.py` vLLM's.

Labels are statuses, finish reasons and reasons for early ends (`endings.py`), never text from a client.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .endings import CUT_SHORT, REFUSALS, Ending
from .engine_client import EngineClient
from .engine_metrics import EngineCollector
from .vllm_metrics import VllmMetrics
from .vllm_observed import VllmObserved

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BATCH_OUTCOMES = ("completed", "failed")
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_DURATION = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The metrics of one web process, on its own registry.

    Attributes:
      vllm: what is observed under vLLM's names.
    """

    def __init__(self, engine: EngineClient, model: str) -> None:
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
        self.vllm = VllmObserved(model)
        registry.register(VllmMetrics(engine, model, self.prompt_tokens, self.finished, self.vllm.registry))

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


def _histogram(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"distaff_{name}_seconds", text, buckets=buckets, registry=registry)


def _by_reason(name: str, text: str, reasons: Iterable[str], registry: CollectorRegistry) -> Counter:
    """A counter with every reason from the start; otherwise the first event of one would be no increase."""
    counter = Counter(f"distaff_{name}", text, ["reason"], registry=registry)
    for reason in reasons:
        counter.labels(reason)
    return counter
