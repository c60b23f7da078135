"""The kinds of values, each defined once for the parsers and for the OpenAPI document.

What a parameter does is defined elsewhere. The one idea: a kind has two methods, `read`, which refuses other
values, and `schema`, which describes the same values in JSON Schema. A value that needs a parser of its own
has its schema next to that parser (`Shape`). Null always means absent, so every optional value can be null.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .fields import Fields

Schema = dict[str, Any]

MOST_TOKENS = 2**31 - 1
TEXT: Schema = {"type": "string"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What differs between servers.

    Attributes:
      most_choices: the largest `n`. strict: only what OpenAI accepts is accepted.
      names: the models that are served; None for any. context, vocabulary: the model's, once they are known.
      template_options: the variables that its chat template reads, once they are known.
    """

    most_choices: int = 16
    strict: bool = False
    names: tuple[str, ...] | None = None
    context: int = MOST_TOKENS
    vocabulary: int = 2**31
    template_options: frozenset[str] | None = None


Bound = int | Callable[[Limits], int]


class Kind(Protocol):
    """A kind of value."""

    def read(self, fields: "Described", name: str) -> Any:
        """The value of a field, None if it is absent. Raises BadRequest for a value of another kind."""
        ...

    def schema(self, limits: Limits) -> Schema:
        """The JSON Schema of these values, without null."""
        ...


class Described(Fields):
    """An object with the kinds of its fields."""

    def __init__(self, values: dict[str, Any], kinds: Mapping[str, Kind], limits: Limits, path: str = ""):
        super().__init__(values, path)
        self.kinds = kinds
        self.limits = limits

    def take(self, name: str) -> Any:
        """A field's value, read by its kind. Raises BadRequest."""
        return self.kinds[name].read(self, name)

    def take_all(self) -> None:
        """Checks every field. Raises BadRequest."""
        for name in self.kinds:
            self.take(name)


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer within bounds; `known`: a bound that depends on the model, checked elsewhere."""

    low: int
    high: Bound
    known: Callable[[Limits], int] | None = None

    def read(self, fields: Described, name: str) -> int | None:
        return fields.integer(name, self.low, _bound(self.high, fields.limits))

    def schema(self, limits: Limits) -> Schema:
        high = _bound(self.high, limits)
        return {
            "type": "integer",
            "minimum": self.low,
            "maximum": min(high, self.known(limits)) if self.known else high,
        }


@dataclass(frozen=True, slots=True)
class Number:
    """A decimal within bounds."""

    low: float
    high: float

    def read(self, fields: Described, name: str) -> float | None:
        return fields.number(name, self.low, self.high)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false."""

    def read(self, fields: Described, name: str) -> bool | None:
        return fields.boolean(name)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class String:
    """A string of at most `longest` characters."""

    longest: int | None = None

    def read(self, fields: Described, name: str) -> str | None:
        return fields.string(name, self.longest)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "string"} | ({} if self.longest is None else {"maxLength": self.longest})


@dataclass(frozen=True, slots=True)
class Words:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, fields: Described, name: str) -> str | None:
        return fields.one_of(name, self.words)

    def schema(self, limits: Limits) -> Schema:
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Object:
    """An object of described fields; `closed`: it has no others; `described`: a more precise schema."""

    fields: Mapping[str, Kind] = field(default_factory=dict)
    closed: bool = False
    described: Callable[[Limits], Schema] | None = None

    def read(self, fields: Described, name: str) -> Described | None:
        found = fields.object(name)
        if found is None:
            return None
        if self.closed:
            found.only(self.fields)
        return Described(found.values, self.fields, fields.limits, found.path)

    def schema(self, limits: Limits) -> Schema:
        if self.described is not None:
            return self.described(limits)
        return properties(self.fields, limits) | ({"additionalProperties": False} if self.closed else {})


@dataclass(frozen=True, slots=True)
class Shape:
    """A value with a parser of its own, which is defined next to its schema."""

    described: Schema | Callable[[Limits], Schema]

    def read(self, fields: Described, name: str) -> Any:
        return fields.get(name)

    def schema(self, limits: Limits) -> Schema:
        return self.described(limits) if callable(self.described) else self.described


@dataclass(frozen=True, slots=True)
class Refused:
    """A parameter that is refused, except for values that change nothing; it reads as absent."""

    neutral: tuple[Any, ...] = ()

    def read(self, fields: Described, name: str) -> None:
        return None

    def schema(self, limits: Limits) -> Schema:
        return {"enum": list(self.neutral)}

    def passes(self, value: Any) -> bool:
        """Whether a value changes nothing. As in JSON Schema, 1.0 is 1, and true is not."""
        return value is None or any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.neutral
        )


def properties(kinds: Mapping[str, Kind], limits: Limits, required: tuple[str, ...] = ()) -> Schema:
    """The schema of an object: its required fields, and others that can be null."""
    described = {
        name: kind.schema(limits) if name in required else nullable(kind.schema(limits))
        for name, kind in kinds.items()
    }
    return {"type": "object", "properties": described} | ({"required": list(required)} if required else {})


def constant(word: str) -> Schema:
    """The schema of one word."""
    return {"type": "string", "enum": [word]}


def record(required: Schema, optional: Schema | None = None) -> Schema:
    """The schema of an object with required fields and optional ones, which can be null."""
    described = {name: nullable(each) for name, each in (optional or {}).items()} | required
    return {"type": "object", "properties": described, "required": list(required)}


def array(items: Schema, most: int, least: int = 1) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def nullable(schema: Schema) -> Schema:
    """The schema of the same values and null."""
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    changed = dict(schema)
    if "enum" in schema:
        changed["enum"] = [*schema["enum"], None]
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        changed["type"] = [*kinds, "null"]
    return changed


def _bound(bound: Bound, limits: Limits) -> int:
    return bound(limits) if callable(bound) else bound
