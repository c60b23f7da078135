"""`Forecast`: predicts how long sequences take, and how long a new one would wait for a slot.

Contains neither engine nor clock. The slot time of a sequence is computed from the times of the engine's
steps, measured when each was compiled. One factor, measured continuously, covers everything that these times
leave out (prompts of other sequences, a busy host). The length of replies is learned from finished ones.

The wait is that of a first-come-first-served queue in front of C servers, with the mean cost of the queue's
entries: exact if all costs are equal, whenever the running ones have started.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ...runtime.request import Request

_UNKNOWN_LENGTH = 256
"""The assumed tokens of a reply without a limit, while no reply has finished yet."""
_NEWS = 0.05
"""The weight of the newest sequence in an average."""
_WINDOW_SECONDS, _NEW_WINDOW = 2.0, 0.3
"""The length of a window in which the factor is measured, without times in which nothing is generated, and
the weight of the newest window."""
_FASTEST, _SLOWEST = 0.01, 100.0
"""Bounds of the factor: one outlier must not spoil all predictions."""
_UNMEASURED = 0.25
"""The factor before any measurement: steps are timed while others are compiled, the largest ones first, and a
step is several times as fast later. The first requests must not be refused because of that."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How long an engine's steps take, as measured.

    Attributes:
      decode: seconds of a step in which every slot decodes. prompt: seconds for each token of a prompt.
    """

    decode: float
    prompt: float


class Forecast:
    """Predictions for sequences, learned from earlier ones.

    Attributes:
      factor: the ratio of the time that sequences take to the measured time of their steps.
    """

    def __init__(self) -> None:
        self.factor = _UNMEASURED
        self._decode = self._prompt = 0.0
        self._length: float | None = None
        self._ended = 0
        self._known = False
        self._now = 0.0
        self._busy = self._occupied = self._progress = 0.0

    def learn_steps(self, steps: Sequence[Steps]) -> None:
        """Uses the mean of the step times of all engines that accept sequences.

        Measurements are kept: the predicted time of a sequence stays as before, although the times of its
        steps have changed.
        """
        if not steps:
            return
        decode = sum(each.decode for each in steps) / len(steps)
        prompt = sum(each.prompt for each in steps) / len(steps)
        if (decode, prompt) == (self._decode, self._prompt):
            return
        if self._known:
            self.factor *= self._decode / decode
        self._decode, self._prompt = decode, prompt
        self._busy = self._occupied = self._progress = 0.0

    def learn(self, tokens: int, *, cut: bool = False) -> None:
        """Records a finished sequence of `tokens` generated tokens.

        Args:
          cut: it ended at its limit, so its full length is unknown.
        """
        self._ended += 1
        weight = max(_NEWS, 1 / (self._ended + 1))
        if not cut or (self._length is not None and tokens > self._length):
            usual = tokens if self._length is None else self._length
            self._length = usual + weight * (tokens - usual)

    def elapse(self, now: float, generating: int) -> None:
        """Records time that passed while so many sequences generated. Call it before that number changes."""
        if generating:
            self._busy += now - self._now
            self._occupied += generating * (now - self._now)
        self._now = now
        if self._busy < _WINDOW_SECONDS or self._progress <= 0.0:
            return
        ratio = min(max(self._occupied / self._progress, _FASTEST), _SLOWEST)
        self.factor += (_NEW_WINDOW if self._known else 1.0) * (ratio - self.factor)
        self._known = True
        self._busy = self._occupied = self._progress = 0.0

    def progress(self, prompt: int, tokens: int, waited: float = 0.0) -> None:
        """Records the progress of a sequence in its slot.

        Args:
          waited: seconds in the slot until the first token, which `elapse` does not count. So slot time
            counts together with the progress that was made in it, never earlier.
        """
        self._occupied += waited
        self._progress += self._tried(prompt, tokens)

    def cost(self, request: Request, known: int = 0) -> float:
        """Seconds of a slot for a sequence that already has `known` tokens."""
        prompt = len(request.prompt) + known
        return self.factor * self._tried(prompt, self._expected(request, known))

    def left(self, request: Request, known: int, *, started: bool) -> float:
        """Remaining seconds of a slot for a running sequence of `known` tokens."""
        if not started:
            return self.cost(request, known)
        return self.factor * self._tried(0, self._expected(request, known))

    def prompt_seconds(self, tokens: int) -> float:
        """Seconds for a number of prompt tokens."""
        return self.factor * self._prompt * tokens

    def _expected(self, request: Request, known: int) -> float:
        """The expected number of remaining tokens; at least one."""
        params = request.params
        usual = _UNKNOWN_LENGTH if self._length is None else self._length
        most = usual if params.max_tokens is None else params.max_tokens
        endless = params.ignore_eos or not params.stop_ids or self._length is None
        return max((most if endless else min(usual, most)) - known, 1.0)

    def _tried(self, prompt: int, tokens: float) -> float:
        return prompt * self._prompt + tokens * self._decode


def wait(waiting: int, cost: float, left: Sequence[float], slots: int) -> float:
    """Seconds until a slot is free for a waiting sequence.

    A slot starts one sequence when it becomes free and another after each `cost`. In units of `cost`, let the
    slots become free at q1 + f1, q2 + f2, ... (integers and fractions); then sum(max(0, n - qi)) sequences
    have started before the integer n.

    Args:
      waiting: sequences in front of it. cost: of each, in seconds of a slot, greater than 0.
      left: the remaining seconds of each running sequence. slots: C; at least 1.
    """
    free = sorted([*[0.0] * (slots - len(left)), *left])[-slots:]
    if not waiting:
        return free[0]
    whole = [int(each / cost) for each in free]
    rounds = min((waiting + total) // (slot + 1) for slot, total in enumerate(accumulate(whole)))
    begun = sum(max(0, rounds - each) for each in whole)
    next_ones = sorted(
        each - cost * first for each, first in zip(free, whole, strict=True) if first <= rounds
    )
    return rounds * cost + next_ones[waiting - begun]
