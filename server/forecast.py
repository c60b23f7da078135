"""`Forecast`: how long sequences take, and how long a new one would wait for its turn.

Knows no engine and no clock. What a sequence takes of a slot is counted from the times of the engine's steps,
as measured before it was ready; one factor, measured all the time, stands for all that these times leave out
(prompts of others, a busy host). How long answers become is learned from those that end.

The wait is that of a queue before C servers: what is ahead, and what is left of what runs, is worked off at C
seconds of a slot a second, and when the new one begins the others are in the middle of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.request import Request
from .engine_client import EngineInfo

_UNKNOWN_LENGTH = 256
"""Tokens of an answer that may go on to the context's end, while none has ended yet."""
_NEWS = 0.05
"""The weight of the newest sequence in an average."""
_WINDOW_SECONDS, _NEW_WINDOW = 2.0, 0.3
"""The factor is measured over windows; the weight of the newest one."""
_FASTEST, _SLOWEST = 0.01, 100.0
"""Bounds of the factor: one odd moment must not turn all predictions to nonsense."""


@dataclass(frozen=True, slots=True)
class Running:
    """A sequence in a slot.

    Attributes:
      cost: what it was thought to take of the slot, in seconds. left: how much of it is still to come.
    """

    cost: float
    left: float


class Forecast:
    """What is known of sequences from those before them.

    Attributes:
      factor: how much longer sequences take than the steps that they consist of, tried alone.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._decode = self._prompt = 0.0
        self._length: float | None = None
        self._ended = 0
        self._known = False
        self._now = self._since = 0.0
        self._occupied = self._progress = 0.0

    def learn_steps(self, info: EngineInfo) -> None:
        """An engine is ready, and has measured its steps."""
        self._decode, self._prompt = info.decode_seconds, info.prompt_seconds

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
        prompt = 0 if started else len(request.prompt) + known
        return self.factor * self._tried(prompt, self._expected(request, known))

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


def wait(ahead: float, running: Sequence[Running], slots: int) -> float:
    """Seconds until a slot is free for a sequence that waits.

    Args:
      ahead: seconds of a slot of all that waits before it. running: what is in the slots. slots: C.
    """
    free = slots - len(running)
    if free > 0 and ahead <= 0.0:
        return 0.0
    if slots <= 0 or not running:
        return ahead / max(slots, 1)
    usual = sum(each.cost for each in running) / len(running)
    work = ahead + sum(each.left for each in running) - (slots - 1) * usual / 2
    soonest = min(each.left for each in running) if free <= 0 else 0.0
    return max(soonest, work / slots, 0.0)
