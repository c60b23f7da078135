"""`KeySettings`: the settings of one API key, as words `setting=value` behind it in the keys file.

Only reads them: `keys.py` has the file, `quotas.py` applies rates, the dispatcher weights and priorities. The
line of `*` has the settings that other keys do not set themselves.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...model.errors import DistaffError

MOST_PER_MINUTE = 10**9
MOST_PRIORITY = 2**31 - 1
"""Priorities lie between this and its negative."""

_NONE = "none"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LEAST_WEIGHT, _MOST_WEIGHT = 0.01, 1000.0


class SettingRefused(DistaffError):
    """An invalid setting of a key. The message names the setting, and shows no word that may be a key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySettings:
    """The settings of one key.

    Attributes:
      name: in metrics and the log of usage; empty for none.
      requests_per_minute, tokens_per_minute: in any 60 seconds; None for no limit.
      concurrent: the most requests in progress; None for no limit.
      weight: its part of slots and turns, relative to other keys.
      priority: of requests that name none, and the lowest value, which is the best, that one may name.
    """

    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    weight: float = 1.0
    priority: int = 0

    def priority_of(self, asked: int | None) -> int:
        """The priority of a request: a better one than the key's is worsened to the key's."""
        return self.priority if asked is None else max(asked, self.priority)


NO_SETTINGS = KeySettings()


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("at most 64 letters, digits, dots, dashes and underscores")
    return text


def _limit(text: str) -> int | None:
    if text == _NONE:
        return None
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text) <= MOST_PER_MINUTE:
        raise ValueError(f"an integer from 1 to {MOST_PER_MINUTE}, or {_NONE}")
    return int(text)


def _weight(text: str) -> float:
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) and _LEAST_WEIGHT <= float(text) <= _MOST_WEIGHT:
        return float(text)
    raise ValueError(f"a number from {_LEAST_WEIGHT} to {_MOST_WEIGHT:g}")


def _priority(text: str) -> int:
    if re.fullmatch(r"-?\d{1,10}", text, re.ASCII) and abs(int(text)) <= MOST_PRIORITY:
        return int(text)
    raise ValueError(f"an integer from -{MOST_PRIORITY} to {MOST_PRIORITY}")


_READERS: dict[str, Callable[[str], object]] = {
    "name": _name,
    "requests_per_minute": _limit,
    "tokens_per_minute": _limit,
    "concurrent": _limit,
    "weight": _weight,
    "priority": _priority,
}


def read_settings(words: Sequence[str]) -> dict[str, object]:
    """The values in the words behind a key; a word is `setting=value`.

    Raises:
      SettingRefused: an unknown, repeated or invalid setting.
    """
    values: dict[str, object] = {}
    for place, word in enumerate(words, start=1):
        setting, equals, text = word.partition("=")
        if not equals or setting not in _READERS:
            raise SettingRefused(
                f"word {place} behind the key is not a setting; expected one of "
                f"{', '.join(f'{name}=…' for name in _READERS)}"
            )
        if setting in values:
            raise SettingRefused(f"{setting} is set twice; expected it once")
        try:
            values[setting] = _READERS[setting](text)
        except ValueError as error:
            raise SettingRefused(f"{setting} is {text[:64]!r}; expected {error}") from None
    return values


def combined(common: Mapping[str, object], own: Mapping[str, object]) -> KeySettings:
    """A key's settings: its own, and where it has none, those of all keys."""
    # Each value has its field's type: `_READERS` has made it.
    return KeySettings(**{**common, **own})  # type: ignore[arg-type]
