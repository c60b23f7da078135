"""Typed values from parsed metadata: an integer, numbers, a flag, or an error with the key."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..model.errors import ConfigError


def integer(place: Mapping[str, Any], key: str) -> int:
    """A required positive integer."""
    value = place.get(key)
    if type(value) is not int or value <= 0:
        raise ConfigError(f"{key} is {brief(value)}; expected a positive integer")
    return value


def number(place: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive finite number; `default` if it is absent or null."""
    value = place.get(key)
    value = default if value is None else value
    if value is None or type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ConfigError(f"{key} is {brief(value)}; expected a positive number")
    return float(value)


def integers(value: Any, key: str) -> list[int]:
    """A list of integers."""
    if not isinstance(value, list) or any(type(each) is not int for each in value):
        raise ConfigError(f"{key} is {brief(value)}; expected a list of integers")
    return value


def numbers(place: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """A required list of positive finite numbers."""
    value = place.get(key)
    if not isinstance(value, list):
        raise ConfigError(f"{key} is {brief(value)}; expected a list of numbers")
    return tuple(number({key: each}, key) for each in value)


def shortest(value: float) -> float:
    """The shortest decimal of this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def flag(place: Mapping[str, Any], key: str) -> bool:
    """True or false; false if it is absent or null."""
    value = place.get(key)
    if value is not None and type(value) is not bool:
        raise ConfigError(f"{key} is {brief(value)}; expected true or false")
    return bool(value)


def brief(value: Any) -> str:
    """A value's text for an error message, truncated to one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
