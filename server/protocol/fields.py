"""Typed readers of a JSON object's fields; a wrong value raises an error in OpenAI's exact words.

Knows the grammar of the errors, not the parameters. The one idea: a `Fields` remembers the path of its
object, so that an error names `messages[3].role` at any depth. Null always means absent.

Source of the texts: OpenAI's answers, as recorded in the protocol's error table.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..errors import BadRequest
from .body import unparseable

_LONGEST_SHOWN = 64


class Fields:
    """The fields of one JSON object found at `path` ("" for the body itself)."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    def where(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """A field's value, unchecked; None where absent."""
        return self.values.get(name)

    def require(self, name: str) -> Any:
        """A field's value; raises BadRequest where absent or null."""
        value = self.values.get(name)
        if value is None:
            raise missing(self.where(name))
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer within [low, high]; 2.0 counts as one, as in JSON Schema, a boolean does not."""
        value = whole(self.values.get(name))
        if value is None:
            return None
        if type(value) is not int:
            raise wrong_type(self.where(name), "an integer", value)
        return _within(self.where(name), "integer", value, low, high)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A decimal number within [low, high]."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise wrong_type(self.where(name), "a decimal", value)
        if not (type(value) is int or math.isfinite(value)):
            raise unparseable()
        try:
            return float(_within(self.where(name), "decimal", value, low, high))
        except OverflowError:  # an integer of hundreds of digits, where any number would do
            raise unparseable() from None

    def boolean(self, name: str) -> bool | None:
        """true or false."""
        value = self.values.get(name)
        if value is None or type(value) is bool:
            return value
        raise wrong_type(self.where(name), "a boolean", value)

    def string(self, name: str, longest: int | None = None) -> str | None:
        """A string of at most `longest` characters."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong_type(self.where(name), "a string", value)
        check_length(self.where(name), value, longest)
        return value

    def one_of(self, name: str, values: Collection[str]) -> str | None:
        """One of a few words."""
        value = self.string(name)
        if value is not None and value not in values:
            raise wrong_value(self.where(name), value, values)
        return value

    def object(self, name: str) -> "Fields | None":
        """A nested object."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise wrong_type(self.where(name), "an object", value)
        return Fields(value, self.where(name))

    def only(self, names: Collection[str]) -> None:
        """Raises BadRequest for the first key outside `names`."""
        for name in self.values:
            if name not in names:
                raise BadRequest(*unknown(self.where(name)))


def objects(path: str, value: Any, longest: int) -> list[Fields]:
    """A list of objects, at least one and at most `longest`.

    Raises:
      BadRequest: not a list, empty, too long, or an item that is not an object.
    """
    if not isinstance(value, list):
        raise wrong_type(path, "an array of objects", value)
    check_array(path, value, longest)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong_type(f"{path}[{index}]", "an object", item)
    return [Fields(item, f"{path}[{index}]") for index, item in enumerate(value)]


def whole(value: Any) -> Any:
    """A decimal number without a fraction as an integer; anything else unchanged."""
    return int(value) if type(value) is float and value.is_integer() else value


def integers(path: str, values: Iterable[Any]) -> tuple[int, ...]:
    """The items of a list as integers. Raises BadRequest for the first that is not an integer."""
    found = tuple(map(whole, values))
    for index, item in enumerate(found):
        if type(item) is not int:
            raise wrong_type(f"{path}[{index}]", "an integer", item)
    return found


def check_array(path: str, value: Sequence[Any], longest: int, *, empty: bool = False) -> None:
    """Raises BadRequest for an empty array (unless `empty` allows it) or one longer than `longest`."""
    if not value and not empty:
        raise BadRequest(
            f"Invalid '{path}': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            path,
            "empty_array",
        )
    if len(value) > longest:
        raise BadRequest(
            f"Invalid '{path}': array too long. Expected an array with maximum length {longest}, but got an "
            f"array with length {len(value)} instead.",
            path,
            "array_above_max_length",
        )


def check_length(path: str, value: str, longest: int | None) -> None:
    """Raises BadRequest for a string longer than `longest`."""
    if longest is not None and len(value) > longest:
        raise BadRequest(
            f"Invalid '{path}': string too long. Expected a string with maximum length {longest}, but got a "
            f"string with length {len(value)} instead.",
            path,
            "string_above_max_length",
        )


def missing(path: str) -> BadRequest:
    return BadRequest(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")


def wrong_type(path: str, expected: str, value: Any) -> BadRequest:
    message = f"Invalid type for '{path}': expected {expected}, but got {_type_name(value)} instead."
    return BadRequest(message, path, "invalid_type")


def wrong_value(path: str, value: str, supported: Iterable[str]) -> BadRequest:
    message = f"Invalid value: '{shown(value)}'. Supported values are: {_listed(supported)}."
    return BadRequest(message, path, "invalid_value")


def unsupported(path: str) -> BadRequest:
    message = f"Unsupported parameter: '{path}' is not supported with this model."
    return BadRequest(message, path, "unsupported_parameter")


def unknown(path: str, nearest: str | None = None) -> tuple[str, str, str]:
    """Message, param and code for a parameter that does not exist."""
    hint = f" Did you mean '{nearest}'?" if nearest else ""
    path = shown(path)
    return f"Unknown parameter: '{path}'.{hint}", path, "unknown_parameter"


def shown(value: Any) -> str:
    """A client's value, short enough for a message."""
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _within(path: str, kind: str, value: Any, low: float, high: float) -> Any:
    if value < low:
        _raise_bound(path, kind, "below minimum", "min", f">= {low}", value)
    if value > high:
        _raise_bound(path, kind, "above maximum", "max", f"<= {high}", value)
    return value


def _raise_bound(path: str, kind: str, side: str, word: str, bound: str, value: Any) -> None:
    raise BadRequest(
        f"Invalid '{path}': {kind} {side} value. Expected a value {bound}, but got {shown(value)} instead.",
        path,
        f"{kind}_{side.split()[0]}_{word}_value",
    )


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array of objects" if value and all(isinstance(v, dict) for v in value) else "an array"
    return "an object"


def _listed(words: Iterable[str]) -> str:
    """'a' · 'a' and 'b' · 'a', 'b', and 'c'."""
    quoted = [f"'{word}'" for word in words]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return ", ".join(quoted[:-1]) + f", and {quoted[-1]}"
