"""How long steps take, measured as they run, and how many tokens to put in a step. No JAX.

The one idea: a stream should not notice that another request's prompt is being computed. While any sequence
decodes, a step takes so many prompt tokens that it lasts at most `PATIENCE` times as long as decoding alone.
If several prompts wait, the limit is that many times higher, and higher again if they are the majority;
`clients.py` decides which ones count.

A size with a long measured time is not chosen, so nothing would show that it has become faster. Therefore the
measured time of a size moves back towards the time of its trial while other sizes run.
"""

from collections import defaultdict
from itertools import takewhile

PATIENCE = 3.0
"""The most times longer that a step with prompt tokens can take than one without."""
FLOODED_PATIENCE = 2.0
"""The same for prompts of a client that fills the engine: others' next requests would wait for the step."""

_NEWEST_WEIGHT = 0.2
"""The weight of the newest step in the average."""

_FADING = 0.01
"""How far a size's time moves back to its trial's time with each step of another size."""


class StepTimes:
    """Average seconds of the steps of each kind and size."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._trials: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def record_trial(self, kind: str, size: int, seconds: float) -> None:
        """Records the time of a trial: the average of this size starts with it."""
        self._trials[kind][size] = self._seconds[kind][size] = seconds

    def record(self, kind: str, size: int, seconds: float) -> None:
        """Records the time of a step, of a size that has had a trial."""
        known = self._seconds[kind]
        for other, trial in self._trials[kind].items():
            weight, towards = (_NEWEST_WEIGHT, seconds) if other == size else (_FADING, trial)
            known[other] += weight * (towards - known[other])

    def sizes(self, kind: str) -> list[int]:
        """The sizes with a known time, ascending."""
        return sorted(self._seconds[kind])

    def seconds(self, kind: str, tokens: int) -> float | None:
        """The time of the smallest step that holds this many tokens; None if unknown."""
        size = next((size for size in self.sizes(kind) if size >= tokens), None)
        return None if size is None else self._seconds[kind][size]

    def most_tokens(self, decoding: int, waiting: int, patience: float = PATIENCE) -> int | None:
        """The largest size of step to fill, for these numbers of decode rows and of prompts that count.

        None if there is no known reason against the largest size.
        """
        alone, sizes = self.seconds("decode", decoding), self.sizes("mixed")
        if not decoding or alone is None or not sizes:
            return None
        limit = patience * alone * max(1, waiting) * max(1, waiting / decoding)
        # A step takes at least as long as a smaller one, even if an older average claims otherwise.
        quick = list(takewhile(lambda size: self._seconds["mixed"][size] <= limit, sizes))
        holding = [size for size in sizes if size > decoding]
        return max(quick[-1:] + holding[:1], default=None)
