"""The requested results for a prompt's tokens, collected over the steps that compute them. No JAX.

A prompt is computed in chunks, and again from its beginning after a preemption. The results of each step are
stored by position, and read when all are there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..request import TokenLogprobs


@dataclass(slots=True)
class ChunkScores:
    """A step's results for the tokens of a row.

    Attributes:
      logprobs: of the token after each of them. hidden: the sum of their final hidden states, f32 `[D]`.
    """

    logprobs: list[TokenLogprobs]
    hidden: np.ndarray


@dataclass(slots=True)
class PromptScores:
    """The scores of one prompt of `length` tokens."""

    length: int
    _logprobs: list[TokenLogprobs] = field(default_factory=list)
    _hidden: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, start: int, chunk: ChunkScores) -> None:
        """Adds the results of a chunk that begins at position `start`; replaces older ones from there on."""
        del self._logprobs[start:]
        self._hidden = {place: hidden for place, hidden in self._hidden.items() if place < start}
        self._logprobs += chunk.logprobs
        self._hidden[start] = chunk.hidden

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Those of each token of the prompt except the first."""
        return tuple(self._logprobs[: self.length - 1])

    @property
    def pooled(self) -> tuple[float, ...]:
        """The mean of the final hidden states."""
        total: Sequence[float] = np.sum(list(self._hidden.values()), axis=0) / self.length
        return tuple(map(float, total))
