"""`Quotas`: whether a key may send a further request now, by its rates and its concurrency.

A request counts when it is admitted. Its tokens are the prompt and as many as it may generate, because nobody
knows how many there will be; what was not generated is given back when it ends. A request that could need
more than the limit of tokens alone counts as the whole limit. Requests that the engines refuse do not count.

Contains neither HTTP nor files. The state belongs to a key's id and outlives changes of its settings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..errors import BadRequest, RateLimited
from .key_settings import KeySettings
from .window import SECONDS, Amount, Window

Unit = Literal["requests", "tokens"]

_FIRST_SECONDS = 1.0
"""The assumed duration of a request while none of the key has ended."""
_SHORTEST_WAIT = 0.5
"""The shortest wait for a request in progress that takes longer than others."""
_NEWS = 0.2
"""The weight of the newest request in the mean duration."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of one rate is left. `reset`: seconds until all of it is."""

    unit: Unit
    limit: int
    remaining: int
    reset: float


@dataclass(slots=True)
class _Used:
    """What one key uses.

    Attributes:
      begun: when each of its requests in progress began, oldest first. mean: seconds that requests take.
    """

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    begun: list[float] = field(default_factory=list)
    mean: float = _FIRST_SECONDS

    def is_over(self, now: float) -> bool:
        """Whether nothing runs, and the last 60 seconds are empty."""
        return not self.begun and self.requests.reset(now) == self.tokens.reset(now) == 0


class Grant:
    """One admitted request; `close` or `cancel` it once."""

    def __init__(self, used: _Used, tokens: int, clock: Callable[[], float]) -> None:
        self._used, self._clock = used, clock
        self._begun = clock()
        self._request: Amount = used.requests.add(1, self._begun)
        self._tokens: Amount = used.tokens.add(tokens, self._begun)
        used.begun.append(self._begun)

    def close(self, tokens: int) -> None:
        """Records the end of the request and the tokens that it has really used."""
        now = self._leave()
        self._used.tokens.correct(self._tokens, tokens, now)
        self._used.mean += _NEWS * (now - self._begun - self._used.mean)

    def cancel(self) -> None:
        """Takes back a request that was not served."""
        now = self._leave()
        self._used.tokens.correct(self._tokens, 0, now)
        self._used.requests.correct(self._request, 0, now)

    def _leave(self) -> float:
        self._used.begun.remove(self._begun)
        return self._clock()


class Quotas:
    """What all keys use. Call every method on one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts with nothing used; `clock` returns seconds."""
        self._clock = clock
        self._keys: dict[str, _Used] = {}
        self._next_look = clock() + SECONDS

    def admit(self, key: str, settings: KeySettings, prompt: int, most: int) -> Grant:
        """Admits a request of a key.

        Args:
          prompt: the tokens of its prompts. most: the most tokens that it may generate.

        Raises:
          RateLimited: not now. BadRequest: its prompt alone is more than the key may use in a minute.
        """
        now = self._clock()
        self._forget(now)
        used = self._keys.setdefault(key, _Used())
        tokens = prompt + most
        if (limit := settings.tokens_per_minute) is not None:
            _check_size(prompt, limit)
            tokens = min(tokens, limit)
        refusals = list(_refusals(used, settings, tokens, now))
        if refusals:
            raise max(refusals, key=lambda each: each.seconds)
        return Grant(used, tokens, self._clock)

    def _forget(self, now: float) -> None:
        """Once a minute forgets keys that are not in use: those that are replaced leave nothing behind."""
        if now >= self._next_look:
            self._next_look = now + SECONDS
            self._keys = {key: used for key, used in self._keys.items() if not used.is_over(now)}

    def standings(self, key: str, settings: KeySettings) -> list[Standing]:
        """What is left of a key's rates."""
        used, now = self._keys.get(key) or _Used(), self._clock()
        found: list[Standing] = []
        if (most := settings.requests_per_minute) is not None:
            found.append(_standing("requests", used.requests, most, now))
        if (most := settings.tokens_per_minute) is not None:
            found.append(_standing("tokens", used.tokens, most, now))
        return found


def _standing(unit: Unit, window: Window, limit: int, now: float) -> Standing:
    return Standing(unit, limit, max(0, limit - window.used(now)), window.reset(now))


def _check_size(prompt: int, limit: int) -> None:
    if prompt > limit:
        raise BadRequest(
            f"This request has {prompt} prompt tokens, and its key may use {limit} tokens per minute. Please "
            "send a shorter prompt."
        )


def _refusals(used: _Used, settings: KeySettings, tokens: int, now: float) -> Iterator[RateLimited]:
    """Every reason against a request, each with the time at which it no longer holds."""
    rates: list[tuple[Unit, Window, int, int | None]] = [
        ("requests", used.requests, 1, settings.requests_per_minute),
        ("tokens", used.tokens, tokens, settings.tokens_per_minute),
    ]
    for unit, window, size, limit in rates:
        if limit is not None and (seconds := window.wait(size, limit, now)) > 0:
            numbers = f"Limit {limit}, Used {window.used(now)}, Requested {size}"
            yield RateLimited(f"Rate limit reached on {unit} per minute: {numbers}.", unit, seconds)
    most = settings.concurrent
    if most is not None and len(used.begun) >= most:
        # An estimate: until the oldest request has ended, if it takes as long as others.
        seconds = max(used.begun[0] + used.mean - now, _SHORTEST_WAIT)
        numbers = f"Limit {most}, In progress {len(used.begun)}"
        yield RateLimited(f"Rate limit reached on concurrent requests: {numbers}.", "concurrent", seconds)
