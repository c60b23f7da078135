"""What was asked of a prompt's tokens, collected over the steps that compute them. No JAX.

A prompt comes in in chunks, and may come in again from its beginning when its pages were taken away; what a
step says of it is put in its place, and read when all of it is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..request import TokenLogprobs


@dataclass(slots=True)
class ChunkScores:
    """What a step says of a row's tokens.

    Attributes:
      logprobs: of the token that follows each of them. hidden: the sum of their final states, f32 `[D]`.
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
        """The tokens from position `start` on have been computed."""
        del self._logprobs[start:]
        self._hidden = {place: hidden for place, hidden in self._hidden.items() if place < start}
        self._logprobs += chunk.logprobs
        self._hidden[start] = chunk.hidden

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Of each token of the prompt but the first."""
        return tuple(self._logprobs[: self.length - 1])

    @property
    def pooled(self) -> tuple[float, ...]:
        """The mean of the final hidden states."""
        total: Sequence[float] = np.sum(list(self._hidden.values()), axis=0) / self.length
        return tuple(map(float, total))
