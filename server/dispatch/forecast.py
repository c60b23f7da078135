"""`Forecast`: how long sequences take, and how long a new one would wait for its turn.

Knows no engine and no clock. What a sequence takes of a slot is counted from the times of the engine's steps,
as tried when each was compiled; one factor, measured all the time, stands for all that these times leave out
(prompts of others, a busy host). How long answers become is learned from those that end.

The wait is that of a queue before C servers, worked off in order, by the mean cost of what is in the queue:
exact where all costs are equal, whenever those that run have begun.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ...runtime.request import Request

_UNKNOWN_LENGTH = 256
"""Tokens of an answer that may go on to the context's end, while none has ended yet."""
_NEWS = 0.05
"""The weight of the newest sequence in an average."""
_WINDOW_SECONDS, _NEW_WINDOW = 2.0, 0.3
"""The factor is measured over windows; the weight of the newest one."""
_FASTEST, _SLOWEST = 0.01, 100.0
"""Bounds of the factor: one odd moment must not turn all predictions to nonsense."""
_UNMEASURED = 0.25
"""The factor before anything is measured: trials take place while other steps are compiled, the largest ones
first, and a step is several times as quick later. Who comes first must not be refused for that."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How long an engine's steps take, as tried.

    Attributes:
      decode: seconds of one in which every slot decodes. prompt: seconds for each token of a prompt.
    """

    decode: float
    prompt: float


class Forecast:
    """What is known of sequences from those before them.

    Attributes:
      factor: how much longer sequences take than the steps that they consist of, tried alone.
    """

    def __init__(self) -> None:
        self.factor = _UNMEASURED
        self._decode = self._prompt = 0.0
        self._length: float | None = None
        self._ended = 0
        self._known = False
        self._now = self._since = 0.0
        self._occupied = self._progress = 0.0

    def learn_steps(self, steps: Sequence[Steps]) -> None:
        """What the engines that take sequences say of their steps: their mean counts.

        What was measured stands: a sequence is thought to take as long as before, though its steps count
        differently now.
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
        self._occupied = self._progress = 0.0

    def learn(self, tokens: int, *, cut: bool = False) -> None:
        """A sequence has ended with `tokens` generated tokens.

        Args:
          cut: at its bound, which says of the length of answers only that they may be longer.
        """
        self._ended += 1
        weight = max(_NEWS, 1 / (self._ended + 1))
        if not cut or (self._length is not None and tokens > self._length):
            usual = tokens if self._length is None else self._length
            self._length = usual + weight * (tokens - usual)

    def elapse(self, now: float, running: int) -> None:
        """Time has passed, with so many sequences in slots. To be called before their number changes."""
        self._occupied += running * (now - self._now)
        self._now = now
        if now - self._since < _WINDOW_SECONDS or self._progress <= 0.0:
            return
        ratio = min(max(self._occupied / self._progress, _FASTEST), _SLOWEST)
        self.factor += (_NEW_WINDOW if self._known else 1.0) * (ratio - self.factor)
        self._known = True
        self._occupied = self._progress = 0.0
        self._since = now

    def progress(self, prompt: int, tokens: int) -> None:
        """A sequence has come so much further in its slot."""
        self._progress += self._tried(prompt, tokens)

    def cost(self, request: Request, known: int = 0) -> float:
        """Seconds of a slot for a sequence that has `known` tokens already."""
        prompt = len(request.prompt) + known
        return self.factor * self._tried(prompt, self._expected(request, known))

    def left(self, request: Request, known: int, *, started: bool) -> float:
        """Seconds of a slot that a running sequence of `known` tokens will still take."""
        if not started:
            return self.cost(request, known)
        return self.factor * self._tried(0, self._expected(request, known))

    def prompt_seconds(self, tokens: int) -> float:
        """Seconds that so many tokens of a prompt take."""
        return self.factor * self._prompt * tokens

    def _expected(self, request: Request, known: int) -> float:
        """How many tokens will still come; at least one."""
        params = request.params
        usual = _UNKNOWN_LENGTH if self._length is None else self._length
        most = usual if params.max_tokens is None else params.max_tokens
        endless = params.ignore_eos or not params.stop_ids or self._length is None
        return max((most if endless else min(usual, most)) - known, 1.0)

    def _tried(self, prompt: int, tokens: float) -> float:
        return prompt * self._prompt + tokens * self._decode


def wait(waiting: int, cost: float, left: Sequence[float], slots: int) -> float:
    """Seconds until a slot is free for a sequence that waits.

    A slot begins one sequence when it becomes free and another after each `cost`. In units of that, of the
    slots that are free at q1 + f1, q2 + f2, ... (integers and fractions) sum(max(0, n - qi)) sequences have
    begun before the integer n.

    Args:
      waiting: sequences before it. cost: of each, in seconds of a slot, greater than 0.
      left: of each one that runs, in seconds. slots: C; at least 1.
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
