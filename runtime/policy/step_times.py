"""How long steps take, learned as they run, and what follows for how a step is filled. No JAX.

The one idea: a stream should not notice that somebody else's prompt is coming in. While anybody decodes, a
step takes in so much of a prompt that it lasts at most `PATIENCE` times as long as decoding alone would.
Where several wait to come in they are kept waiting too: so many times longer, and more where they are the
majority.

A size that is thought dear is not chosen, so nothing would ever show that it no longer is. Hence what is
known of a size fades while others run, towards what a trial of it took.
"""

from collections import defaultdict
from itertools import takewhile

PATIENCE = 3.0
"""How many times longer a step with a part of a prompt may take than one without."""

_NEWS = 0.2
"""The weight of the newest step in the average."""

_FADING = 0.01
"""How far what is known of a size moves back to its trial's time with each step of another size."""


class StepTimes:
    """Average seconds of the steps of each kind and size."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._trials: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def record_trial(self, kind: str, size: int, seconds: float) -> None:
        """A trial took so long: what is known of the size begins with it."""
        self._trials[kind][size] = self._seconds[kind][size] = seconds

    def record(self, kind: str, size: int, seconds: float) -> None:
        """A step has run, of a size that was tried."""
        known = self._seconds[kind]
        for other, trial in self._trials[kind].items():
            weight, towards = (_NEWS, seconds) if other == size else (_FADING, trial)
            known[other] += weight * (towards - known[other])

    def sizes(self, kind: str) -> list[int]:
        """The sizes known so far, ascending."""
        return sorted(self._seconds[kind])

    def seconds(self, kind: str, tokens: int) -> float | None:
        """Of the smallest step that holds so many tokens; None where none is known."""
        size = next((size for size in self.sizes(kind) if size >= tokens), None)
        return None if size is None else self._seconds[kind][size]

    def most_tokens(self, decoding: int, waiting: int) -> int | None:
        """The size of step to fill while so many rows decode and so many prompts wait; None if nothing is
        known that speaks against the largest."""
        alone, sizes = self.seconds("decode", decoding), self.sizes("mixed")
        if not decoding or alone is None or not sizes:
            return None
        limit = PATIENCE * alone * max(1, waiting) * max(1, waiting / decoding)
        # A step takes no less than a smaller one, whatever was known of it in better times.
        quick = list(takewhile(lambda size: self._seconds["mixed"][size] <= limit, sizes))
        holding = [size for size in sizes if size > decoding]
        return max(quick[-1:] + holding[:1], default=None)
