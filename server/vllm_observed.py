"""`VllmObserved`: the counter and the histograms that calls observe, under vLLM's names.

Buckets are those of vLLM's V1 engine (`vllm/v1/metrics/buckets.py`). `call_record.py` has our own, which have
one value for a call where these have one for a token or a choice.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from ..runtime.request import TokenEvent

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


class VllmObserved:
    """What the calls of one server observe, on a registry of its own.

    Attributes:
      first_token, request: histograms of seconds from a call's arrival to its first token, and to its end.
      interval: of seconds between tokens of a choice. queue: of seconds that a choice waited to be computed.
      generated: counts generated tokens as they arrive.
    """

    def __init__(self, model: str) -> None:
        """Starts at zero; `model`: the value of the label `model_name`."""
        self.registry = CollectorRegistry()
        self._model = model
        generated = Counter(
            "vllm:generation_tokens", "Tokens generated.", ["model_name"], registry=self.registry
        )
        self.generated = generated.labels(model)
        self.first_token = self._histogram(
            "time_to_first_token", "From arrival to first token.", _FIRST_TOKEN
        )
        self.interval = self._histogram("inter_token_latency", "Between tokens of a choice.", _INTERVAL)
        self.request = self._histogram("e2e_request_latency", "From arrival to the last byte.", _REQUEST)
        self.queue = self._histogram("request_queue_time", "From submission to the first step.", _REQUEST)

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

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        labels = ["model_name"]
        family = Histogram(f"vllm:{name}_seconds", text, labels, buckets=buckets, registry=self.registry)
        return family.labels(self._model)
