"""`CallRecord`: what one call did, for the metrics and for one log line at its end.

The log line contains counts and times, never a prompt, an answer or a key.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from .endings import Ending
from .metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTimes:
    """When a call did what, in seconds of `time.perf_counter`.

    Attributes:
      submitted: it was sent to the engines. computed: its first step began; None if unknown.
      first: its first output; None for none.
    """

    submitted: float
    computed: float | None
    first: float | None
    ended: float


class CallRecord:
    """The record of one call, opened when it is submitted and closed exactly once.

    A resumed one counts in full, because the server that was lost has not recorded it. Its times are in no
    metric, and neither are those of a line of a batch, which waits for all others.

    Attributes:
      prompt_tokens: each prompt counted once. completion_tokens: of all choices, 0 until it is closed.
      reasons: why choices have ended.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        names: Mapping[str, str],
        model: str,
        started: float,
        prompt_tokens: int,
        timed: bool = True,
    ) -> None:
        self._metrics = metrics
        self._names = names
        self._model = model
        self._started = started
        self._submitted = time.perf_counter()
        self._computed: float | None = None
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0
        self._timed = timed
        self._first: float | None = None
        self._ended: float | None = None
        self.reasons: list[str] = []
        metrics.in_flight.inc()
        metrics.prompt_tokens.inc(prompt_tokens)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the arrival to the first output; None before."""
        return None if self._first is None else self._first - self._started

    def record_output(self, waited: float | None = None) -> None:
        """Records output of a choice; `waited`: seconds from its submission to its first step."""
        if self._first is None:
            self._first = time.perf_counter()
            self._computed = None if waited is None else min(self._submitted + waited, self._first)
            if self._timed:
                self._metrics.first_token.observe(self._first - self._started)
                self._metrics.vllm.first_token.observe(self._first - self._started)

    def ended(self, reason: str) -> None:
        """Records the end of a choice."""
        self.reasons.append(reason)
        self._metrics.finished.labels(reason).inc()

    def close(self, completion_tokens: list[int], ending: Ending | None) -> None:
        """Records the end of the call; `ending`: why it ended before its answer was complete, if it did."""
        now = self._ended = time.perf_counter()
        self.completion_tokens = sum(completion_tokens)
        if ending is not None:
            for _ in range(len(completion_tokens) - len(self.reasons)):
                self.ended(ending)
            if ending not in self.reasons:
                self.reasons.append(ending)  # all choices ended, but the answer is incomplete
        self._metrics.in_flight.dec()
        self._metrics.completion_tokens.inc(self.completion_tokens)
        if self._timed:
            self._observe_end(now, max(completion_tokens))
        self._log(now)

    def _observe_end(self, now: float, longest: int) -> None:
        """Records the call's times; `longest`: the tokens of its longest choice."""
        self._metrics.duration.observe(now - self._started)
        self._metrics.vllm.request.observe(now - self._started)
        if self._first is not None and longest > 1:
            self._metrics.per_token.observe((now - self._first) / (longest - 1))

    @property
    def times(self) -> CallTimes:
        """When it did what, once it is closed."""
        assert self._ended is not None
        return CallTimes(
            submitted=self._submitted, computed=self._computed, first=self._first, ended=self._ended
        )

    def _log(self, now: float) -> None:
        """One line of text; its values are keys of their own in JSON."""
        seconds = self.first_token_seconds
        first = None if seconds is None else round(seconds, 3)
        total, finish = round(now - self._started, 3), ",".join(self.reasons)
        request, *others = self._names.items()
        log.info(
            "%s model=%s prompt=%d completion=%d first=%s total=%.3fs finish=%s",
            " ".join([request[1], *(f"{name}={value}" for name, value in others)]),
            self._model,
            self.prompt_tokens,
            self.completion_tokens,
            "-" if first is None else f"{first:.3f}s",
            total,
            finish,
            extra={
                **self._names,
                "model": self._model,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "first_token_seconds": first,
                "total_seconds": total,
                "finish": finish,
            },
        )
