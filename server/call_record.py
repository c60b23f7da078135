"""`CallRecord`: what one call did, for the metrics and for one log line at its end.

The log line contains counts and times, never a prompt, an answer or a key.
"""

import logging
import time

from .endings import Ending
from .metrics import Metrics

log = logging.getLogger(__name__)


class CallRecord:
    """The record of one call, opened when it is submitted and closed exactly once.

    A resumed one counts in full, because the server that was lost has not recorded it; only its times to and
    between tokens are no measurement.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        id: str,
        model: str,
        started: float,
        prompt_tokens: int,
        resumed: bool = False,
    ) -> None:
        self._metrics = metrics
        self._id = id
        self._model = model
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._resumed = resumed
        self._first: float | None = None
        self._reasons: list[str] = []
        metrics.in_flight.inc()
        metrics.prompt_tokens.inc(prompt_tokens)

    def record_output(self) -> None:
        """Records output of a choice."""
        if self._first is None:
            self._first = time.perf_counter()
            if not self._resumed:
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
        if self._first is not None and longest > 1 and not self._resumed:
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
